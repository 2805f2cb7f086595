#pragma once

#include "host_core.hpp"

#include <troupe/flight_recorder.hpp>

#include <chrono>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace troupe::detail {

/// What a rank is about to do, as its peers compare it.
struct CallHeader {
  std::uint64_t sequence = 0, what = 0, bytes = 0;
  CollectiveLabel label;
  /// The same call; a label goes with none.
  [[nodiscard]] bool agrees(const CallHeader& other) const noexcept;
  [[nodiscard]] std::string text() const;
};
static_assert(sizeof(CallHeader) == 14 * 8);

/// A collective of this rank, for those who have to explain why it did not come about.
struct CallInHand {
  CallHeader header;
  std::string text;  ///< "all_reduce #2 of `encoder.5` (sum, F32 x 8)"
  std::chrono::milliseconds timeout{};
  std::chrono::steady_clock::time_point started{};
  std::string previous;  ///< the collective before, finished then; "" for the first
  std::chrono::steady_clock::time_point previous_end{};
};

/// What goes to a peer and comes from it.
struct Transfer {
  HostLink* link = nullptr;
  std::vector<std::span<const std::byte>> out{};
  std::vector<std::span<std::byte>> in{};
  std::size_t sent = 0;      ///< of `out`: no longer needed by the transfer
  std::size_t received = 0;  ///< of `in`
  std::size_t allowed = ~std::size_t{0};  ///< of `out`: what may be sent already
  std::size_t room = ~std::size_t{0};     ///< of `in`: for how much there is room
  /// All that is allowed has left for the wire.
  [[nodiscard]] bool idle() const noexcept { return sent >= allowed && !link->data().waits_to_send(); }
};

/// Moves all bytes of all transfers at once, both ways, each after a block of headers of the two hosts' ranks that must agree.
/// `progress`, called while bytes come and go but not before all headers agree, may raise `allowed` and `room`, and is true when
/// it did something; counts are without headers.
/// Throws Failure{DeadlinePassed} naming who sent nothing for as long as the timeout, Failure{CollectiveMismatch},
/// Failure{Aborted} naming a rank that has left, or what the group died of.
class Exchange {
 public:
  /// `mine`: headers of this host's ranks.
  Exchange(HostCore& core, const CallInHand& call, const std::vector<CallHeader>& mine) : core_(core), call_(call), mine_(mine) {}
  void run(std::vector<Transfer>& transfers, const std::function<bool()>& progress);

 private:
  /// One transfer and its headers.
  struct Side {
    Transfer* transfer;
    std::vector<CallHeader> theirs{};
    std::size_t headers_sent = 0, headers_received = 0, out_bytes = 0, in_bytes = 0;
    [[nodiscard]] bool introduced() const noexcept { return headers_received == theirs.size() * sizeof(CallHeader); }
  };
  [[nodiscard]] bool send(Side& side) const;
  [[nodiscard]] bool receive(Side& side) const;
  [[nodiscard]] bool done(const Side& side) const;
  void compare(const std::vector<Side>& sides) const;
  void wait(const std::vector<Side>& sides, std::chrono::steady_clock::time_point until) const;
  [[noreturn]] void nobody_came(const std::vector<Side>& sides) const;
  [[noreturn]] void gone(const Side& side) const;
  void give_others_a_word(std::chrono::milliseconds patience) const;
  [[nodiscard]] std::string last_of(const std::vector<int>& names) const;
  [[nodiscard]] std::string where() const;

  HostCore& core_;
  const CallInHand& call_;
  const std::vector<CallHeader>& mine_;
};

/// " in the group of ranks 0, 2", for groups that are not of all ranks.
[[nodiscard]] std::string group_text(const HostCore& core);

}  // namespace troupe::detail
