#pragma once

#include <troupe/communicator.hpp>

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace c10d {
class Backend;
class ProcessGroup;
}  // namespace c10d

namespace troupe {

/// A Communicator as a c10d backend, so that c10d::Reducer and other c10d code run on it. CPU tensors. A thread of the
/// backend makes all calls of `group`; nobody else may. Offered: allreduce, broadcast, allgather, reduce_scatter (also of
/// one flat tensor) and barrier; c10d says so when asked for another.
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> as_c10d_backend(std::shared_ptr<Communicator> group);
/// The same, as the process group that c10d code asks for.
[[nodiscard]] c10::intrusive_ptr<c10d::ProcessGroup> as_c10d_process_group(std::shared_ptr<Communicator> group);

/// A c10d backend as a Communicator, called `name`. Buffers are copied in and out, so that a collective that is given
/// up never touches the caller's memory. What c10d cannot say is missing: `abort` ends only this rank's waiting, and a
/// deadline names no rank; the order of additions is the backend's; and `split` is not supported.
[[nodiscard]] std::unique_ptr<Communicator> as_communicator(c10::intrusive_ptr<c10d::Backend> backend, std::string name,
                                                            std::chrono::milliseconds timeout);

/// Gloo over loopback sockets between processes of this host. They meet in `directory`, which must be private to the
/// user (mode 0700; else Failure{InvalidArgument}) and fresh for each group. A small file there is how a deadline names
/// who did not come, a mismatch is told, and an abort reaches the peers: within 100 ms.
/// Sums are the same bits on every rank, but added in Gloo's order, 16-bit floats without a wider sum (unless the
/// output is F32: then they travel as F32). `split` meets in a folder below `directory`.
/// Throws Failure{DeadlinePassed} when the others do not come to the meeting.
[[nodiscard]] std::unique_ptr<Communicator> make_gloo_communicator(int rank, int size, const std::filesystem::path& directory,
                                                                   std::chrono::milliseconds timeout);
/// LibTorch's Gloo itself, as above: what benchmarks and tests compare with. Over another `address` of this host than loopback
/// it is in the clear and believes whoever connects: for benchmarks on a network of their own.
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> make_gloo_backend(int rank, int size, const std::filesystem::path& directory,
                                                                  std::chrono::milliseconds timeout, const std::string& address = "127.0.0.1");

}  // namespace troupe
