#include "to_communicator.hpp"

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

namespace troupe {

namespace {

/// LibTorch's Gloo, with a way to end what it has under way: its sockets close, here and so at the peers.
class ClosableGloo final : public c10d::ProcessGroupGloo {
 public:
  using ProcessGroupGloo::ProcessGroupGloo;
  void close() {
    for (auto& context : contexts_) context->closeConnections();
  }
};

void check_private(const std::filesystem::path& directory) {
  struct stat info{};
  if (stat(directory.c_str(), &info) != 0)
    throw Failure{Errc::InvalidArgument, "gloo meets in " + directory.string() + ": " + std::strerror(errno)};
  if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid() || (info.st_mode & 077) != 0)
    throw Failure{Errc::InvalidArgument, "gloo meets in " + directory.string() + ", which must be a directory of yours with mode 0700"};
}

c10::intrusive_ptr<ClosableGloo> meet(int rank, int size, const std::filesystem::path& directory, std::chrono::milliseconds timeout,
                                      const std::string& address = "127.0.0.1") {
  if (size < 1 || rank < 0 || rank >= size)
    throw Failure{Errc::InvalidArgument, "gloo: no rank " + std::to_string(rank) + " in a group of " + std::to_string(size)};
  check_private(directory);
  try {
    auto store = c10::make_intrusive<c10d::FileStore>((directory / "store").string(), size);
    store->setTimeout(timeout);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    options->threads = 1;
    return c10::make_intrusive<ClosableGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank, size, options);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    throw Failure{Errc::DeadlinePassed, "gloo: rank " + std::to_string(rank) + " did not meet the other " + std::to_string(size - 1) +
                                            " in " + directory.string() + ": " + text.substr(0, text.find('\n'))};
  }
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(int rank, int size, const std::filesystem::path& directory,
                                                    std::chrono::milliseconds timeout, const std::string& address) {
  return meet(rank, size, directory, timeout, address);
}

namespace {

/// The group that `members` of `parent` make (no parent: a first group, of `members`), over one more Gloo.
std::unique_ptr<Communicator> join(int rank, const std::vector<int>& members, const std::filesystem::path& directory,
                                   std::chrono::milliseconds timeout, const std::shared_ptr<detail::SharedState>& parent) {
  const auto size = static_cast<int>(members.size());
  auto gloo = meet(rank, size, directory, timeout);
  const int fd = open((directory / "board").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) throw Failure{Errc::StorageUnavailable, "gloo: " + (directory / "board").string() + ": " + std::strerror(errno)};
  std::shared_ptr<detail::SharedState> board;
  try {
    board = parent ? detail::SharedState::of_file(fd, parent, members, timeout) : detail::SharedState::of_file(fd, size, timeout);
  } catch (...) {
    close(fd);
    throw;
  }
  close(fd);
  // Gloo's own limit comes after ours, which can say who did not come.
  gloo->setTimeout(timeout + std::chrono::seconds{5});
  auto split = [directory, board](const std::string& key, int new_rank, const std::vector<int>& chosen, std::chrono::milliseconds limit) {
    const auto place = directory / ("split-" + key);
    if (mkdir(place.c_str(), 0700) != 0 && errno != EEXIST)
      throw Failure{Errc::StorageUnavailable, "gloo: " + place.string() + ": " + std::strerror(errno)};
    return join(new_rank, chosen, place, limit, board);
  };
  auto* raw = gloo.get();
  return detail::make_c10d_communicator({.backend = std::move(gloo),
                                         .name = "gloo",
                                         .timeout = timeout,
                                         .board = board,
                                         .close = [raw] { raw->close(); },
                                         .split = std::move(split)});
}

}  // namespace

std::unique_ptr<Communicator> make_gloo_communicator(int rank, int size, const std::filesystem::path& directory,
                                                     std::chrono::milliseconds timeout) {
  std::vector<int> members(static_cast<std::size_t>(std::max(size, 0)));
  std::iota(members.begin(), members.end(), 0);
  return join(rank, members, directory, timeout, nullptr);
}

}  // namespace troupe
