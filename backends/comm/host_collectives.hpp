#pragma once

#include "host_exchange.hpp"
#include "request.hpp"

#include <memory>
#include <span>
#include <vector>

namespace troupe::detail {

/// The collectives of a group of hosts, one after the other, each as a blocking call.
///
/// In every one the ranks of a host first show each other what they are about to do. Then, of S bytes: an all_reduce is a local
/// reduce_scatter to the lanes, an exchange between the ranks of a lane, a local broadcast of each lane's slice; so a byte crosses the
/// wire once for each other host (two hosts), or 2·(H-1)/H times (more: each owns a part of the slice, adds and sends it back).
/// What fits beside the headers (`kInline`) goes through place 0 alone, all ranks' at once.
///
/// A sum adds the ranks of a host in rank order, then the hosts in order; 16-bit floats stay fp32 on the way, and are rounded once.
class HostCollectives {
 public:
  /// Bytes of a rank's buffer that travel with its header.
  static constexpr std::size_t kInline = 512;

  explicit HostCollectives(HostCore& core);
  /// Throws Failure, after which the group must be failed.
  void run(const Request& request, std::uint64_t sequence, const CollectiveLabel& label, std::chrono::milliseconds timeout);

 private:
  /// What a rank shows the others of its host.
  struct Card {
    CallHeader header;
    std::byte payload[kInline];
  };
  struct Block {
    std::shared_ptr<void> memory;
    std::size_t bytes = 0;
  };

  void show_cards(const Request& request);
  void finish(const Request& request);
  void exchange_inline(const Request& request, std::size_t bytes);
  void combine_inline(const Request& request, std::size_t bytes);
  void all_reduce(const Request& request);
  void reduce_to_owners(const Request& request, std::span<const std::size_t> begins);
  void hand_to_owners(const Request& request, std::span<const std::size_t> begins, std::byte* sum);
  void all_gather(const Request& request);
  void broadcast(const Request& request);
  class Segments;
  void all_reduce_in_segments(const Request& request);
  /// Replaces the hosts' partial sums of a slice by their sum, in `target` [count of `to`] on all ranks of the lane.
  void exchange_slice(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count);
  void exchange_directly(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count);
  void exchange_by_owners(std::byte* partial, DType from, std::byte* target, DType to, ReduceOp op, std::size_t count);
  /// Broadcasts part l of `whole` from place l to the ranks of this host.
  void spread(Buffer whole, int lanes, std::vector<Work>& works);
  void spread(Buffer whole, int lanes);

  void move(std::vector<Transfer>& transfers, const std::function<bool()>& progress = {});
  void await(Work work);
  void await(std::vector<Work>& works);
  void local_patience(bool first);
  [[nodiscard]] std::byte* scratch(std::size_t i, std::size_t bytes);
  [[nodiscard]] Communicator& local() noexcept { return core_.local(); }
  [[nodiscard]] const HostTopology& t() const noexcept { return core_.topology(); }

  HostCore& core_;
  CallInHand call_;
  std::shared_ptr<void> cards_memory_;
  Card* cards_;  ///< [ranks of this host], then one more: mine
  std::vector<CallHeader> headers_;
  std::vector<Block> blocks_;
};

}  // namespace troupe::detail
