#include "arena.hpp"
#include "local_access.hpp"
#include "seat.hpp"

#include <troupe/local_groups.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace troupe {

namespace {

[[noreturn]] void wrong(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

void check_size(int size) {
  if (size < 1 || size > 4096) wrong("a group has 1 to 4096 ranks, not " + std::to_string(size));
}

class LocalCommunicator final : public detail::RequestCommunicator {
 public:
  LocalCommunicator(std::shared_ptr<detail::SharedState> state, int rank, std::shared_ptr<detail::Arena> arena)
      : arena_(arena), seat_(std::make_shared<detail::Seat>(std::move(state), rank, std::move(arena))) {}
  ~LocalCommunicator() override { seat_->leave(); }

  int rank() const noexcept override { return seat_->rank(); }
  int size() const noexcept override { return seat_->state().size(); }
  std::string name() const override { return arena_ ? "shared_memory" : "threads"; }
  bool reaches_any_memory() const noexcept override { return !arena_; }

  std::unique_ptr<Communicator> split(int color) override {
    const auto colors = detail::exchange_colors(*this, color);
    const auto place = detail::new_seat(colors, rank());
    auto state = arena_ ? child_of_processes(place)
                        : seat_->state().child({seat_->sequence(), color}, place.members, seat_->timeout());
    auto group = std::make_unique<LocalCommunicator>(std::move(state), place.rank, arena_);
    group->set_timeout(seat_->timeout());
    barrier().wait().or_throw();  // from here on a rank of the new group that goes is one that left
    return group;
  }
  void abort(const std::string& reason) noexcept override { seat_->state().fail(Errc::Aborted, reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    return arena_ ? arena_->allocate(bytes) : detail::allocate_from_heap(bytes);
  }
  void set_timeout(std::chrono::milliseconds timeout) override { seat_->set_timeout(timeout); }
  FlightRecorder& recorder() noexcept override { return seat_->recorder(); }
  detail::SharedState& state() noexcept { return seat_->state(); }

 protected:
  Work post(const detail::Request& request) override { return seat_->post(request); }

 private:
  /// The first rank of each new group lays it out in memory of its own and tells all where.
  std::shared_ptr<detail::SharedState> child_of_processes(const detail::NewSeat& place) {
    const auto ranks = static_cast<int>(place.members.size());
    std::uint64_t mine = 0;
    if (place.rank == 0) {
      auto* memory = arena_->allocate_for_good(detail::SharedState::bytes_for(ranks));
      detail::SharedState::lay_out_at(memory, ranks, seat_->timeout());
      mine = *seat_->state().address_of(memory, 1);
    }
    std::vector<std::uint64_t> addresses(static_cast<std::size_t>(size()));
    all_gather({&mine, sizeof mine, DType::I64}, {addresses.data(), addresses.size() * sizeof mine, DType::I64}).wait().or_throw();
    return seat_->state().child_at(addresses[static_cast<std::size_t>(place.members.front())], place.members);
  }

  std::shared_ptr<detail::Arena> arena_;
  std::shared_ptr<detail::Seat> seat_;
};

class MemfdGroup final : public SharedGroup {
 public:
  MemfdGroup(int fd, std::shared_ptr<detail::SharedState> state) : fd_(fd), state_(std::move(state)) {}
  ~MemfdGroup() override { close(fd_); }
  int fd() const noexcept override { return fd_; }
  int size() const noexcept override { return state_->size(); }
  void abort(const std::string& reason) noexcept override { state_->fail(Errc::Aborted, reason); }

 private:
  int fd_;
  std::shared_ptr<detail::SharedState> state_;
};

}  // namespace

namespace detail {

void know_ranks_as(Communicator& local, const std::vector<int>& ranks) {
  if (auto* group = dynamic_cast<LocalCommunicator*>(&local)) group->state().know_members_as(ranks);
}

void fail_group(Communicator& local, Errc code, const std::string& text) noexcept {
  if (auto* group = dynamic_cast<LocalCommunicator*>(&local)) group->state().fail(code, text);
  else local.abort(text);
}

std::optional<Outcome> failure_of(Communicator& local) noexcept {
  auto* group = dynamic_cast<LocalCommunicator*>(&local);
  if (!group || !group->state().is_broken()) return std::nullopt;
  return group->state().failure();
}

}  // namespace detail

std::vector<std::unique_ptr<Communicator>> make_thread_group(int size, std::chrono::milliseconds timeout) {
  check_size(size);
  const auto state = detail::SharedState::of_threads(size, timeout);
  std::vector<std::unique_ptr<Communicator>> seats;
  for (int r = 0; r < size; ++r) seats.push_back(std::make_unique<LocalCommunicator>(state, r, nullptr));
  return seats;
}

std::unique_ptr<SharedGroup> SharedGroup::create(int size, std::chrono::milliseconds timeout) {
  check_size(size);
  const int fd = memfd_create("troupe-group", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw Failure{Errc::StartFailed, std::string{"shared memory group: memfd: "} + std::strerror(errno) + " (see ulimit -n)"};
  try {
    return std::make_unique<MemfdGroup>(fd, detail::SharedState::create(fd, size, timeout));
  } catch (...) {
    close(fd);
    throw;
  }
}

std::unique_ptr<Communicator> SharedGroup::join(int fd, int rank) {
  auto state = detail::SharedState::open(fd);
  if (rank < 0 || rank >= state->size())
    wrong("shared memory group: no rank " + std::to_string(rank) + " in a group of " + std::to_string(state->size()));
  if (state->rank(rank).joined.exchange(1) != 0) wrong("shared memory group: rank " + std::to_string(rank) + " has its seat already");
  auto arena = std::make_shared<detail::Arena>(state, fd, rank);
  return std::make_unique<LocalCommunicator>(std::move(state), rank, std::move(arena));
}

}  // namespace troupe
