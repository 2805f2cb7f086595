#pragma once

#include <troupe/communicator.hpp>

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>

namespace c10d {
class Backend;
class ProcessGroup;
}  // namespace c10d

namespace troupe {

/// What a c10d backend cannot say of itself.
struct C10dOptions {
  std::chrono::milliseconds timeout{600'000};
  /// Ends every pending collective of the backend with an error, if it can. Called once, from any thread.
  std::function<void()> cancel;
  /// Told the number of every collective before it begins; nothing: not told.
  std::function<void(std::uint64_t sequence)> beginning;
  /// Names the ranks that have not begun collective `sequence`; nothing: unknown.
  std::function<std::string(std::uint64_t sequence)> missing;
  std::string name = "c10d";
};

/// A communicator over any c10d backend of CPU tensors (Gloo, or a user's own). Mean is sum and division; 16-bit floats are
/// summed in fp32; the order of summation is the backend's, equal on all ranks. `abort` reaches the other ranks only where
/// `cancel` does.
[[nodiscard]] std::unique_ptr<Communicator> from_c10d(c10::intrusive_ptr<c10d::Backend> backend, C10dOptions options);

/// A c10d process group over a communicator, which must outlive it: c10d::Reducer and users' c10d code run on ours. A
/// collective is finished when its call returns; its Work and Future are complete. Errors are thrown by the call.
[[nodiscard]] c10::intrusive_ptr<c10d::ProcessGroup> to_c10d(Communicator& communicator);

/// Ranks of one host over LibTorch's own Gloo on loopback TCP: an oracle for tests and a peer for benchmarks; between hosts
/// it will take its rendezvous from the actors. The ranks meet in `directory`, which must belong to this user alone (mode
/// 0700); no port is listened on beyond Gloo's own pairwise connections on 127.0.0.1.
/// `abort` closes this rank's connections, which ends the peers' collectives as well.
/// Throws Failure{DeadlinePassed, StorageUnavailable, InvalidArgument}.
[[nodiscard]] std::unique_ptr<Communicator> make_gloo_communicator(const std::filesystem::path& directory, int rank, int size,
                                                                   std::chrono::milliseconds timeout);

}  // namespace troupe
