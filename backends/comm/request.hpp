#pragma once

#include <troupe/communicator.hpp>

#include <cstdint>
#include <string_view>
#include <vector>

namespace troupe::detail {

using troupe::Call;

/// A collective as a value: what a rank asks for.
struct Request {
  Call call = Call::Barrier;
  ReduceOp op = ReduceOp::Sum;
  int root = 0;
  ConstBuffer input = {};  ///< of a broadcast: the root's buffer, empty elsewhere
  Buffer output = {};
  std::span<const std::size_t> begins = {};  ///< of reduce_to_owners

  /// Of what is sent; the output of a reduction may be wider.
  [[nodiscard]] DType dtype() const noexcept { return has_input() ? input.dtype : output.dtype; }
  /// All ranks ask for the same number.
  [[nodiscard]] std::size_t bytes() const noexcept { return has_input() ? input.bytes : output.bytes; }
  [[nodiscard]] Collective collective() const noexcept { return {call, op, dtype(), output.dtype, root, bytes()}; }
  [[nodiscard]] bool reduces() const noexcept {
    return call == Call::AllReduce || call == Call::ReduceScatter || call == Call::ReduceToOwners;
  }

 private:
  [[nodiscard]] bool has_input() const noexcept {
    return call == Call::ReduceScatter || call == Call::AllGather || call == Call::ReduceToOwners;
  }
};

/// Throws Failure{InvalidArgument} when the request makes no sense for `rank` in a group of `size`.
void check(const Request& request, int rank, int size);
/// True when 16-bit sums are to be handed out as they are, in fp32.
[[nodiscard]] bool widens(const Request& request) noexcept;
/// A collective that has failed already.
[[nodiscard]] Work failed_work(Outcome outcome);
/// Asks `group` for it.
[[nodiscard]] Work perform(Communicator& group, const Request& request);

/// A communicator whose collectives are requests, checked once for all implementations.
class RequestCommunicator : public Communicator {
 public:
  Work all_reduce(Buffer buffer, ReduceOp op) final;
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) final;
  Work reduce_to_owners(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, ReduceOp op) final;
  Work all_gather(ConstBuffer input, Buffer output) final;
  Work broadcast(Buffer buffer, int root) final;
  Work barrier() final;

 protected:
  /// `request` has been checked.
  [[nodiscard]] virtual Work post(const Request& request) = 0;

 private:
  [[nodiscard]] Work checked(const Request& request);
};

/// A communicator that does something around another's collectives.
class CommunicatorDecorator : public RequestCommunicator {
 public:
  explicit CommunicatorDecorator(std::unique_ptr<Communicator> group) : group_(std::move(group)) {}
  int rank() const noexcept override { return group_->rank(); }
  int size() const noexcept override { return group_->size(); }
  std::string name() const override { return group_->name(); }
  bool reaches_any_memory() const noexcept override { return group_->reaches_any_memory(); }
  bool widens() const noexcept override { return group_->widens(); }
  void abort(const std::string& reason) noexcept override { group_->abort(reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return group_->allocate(bytes); }
  void set_timeout(std::chrono::milliseconds timeout) override { group_->set_timeout(timeout); }
  FlightRecorder& recorder() noexcept override { return group_->recorder(); }

 protected:
  [[nodiscard]] Communicator& group() noexcept { return *group_; }

 private:
  std::unique_ptr<Communicator> group_;
};

/// Memory of this process, zeroed and aligned to 64 bytes.
[[nodiscard]] std::shared_ptr<void> allocate_from_heap(std::size_t bytes);

/// Colors of all ranks, for `split`: throws the failure of the exchange.
[[nodiscard]] std::vector<int> exchange_colors(Communicator& group, int color);

/// What the color of a rank makes of it in a new group.
struct NewSeat {
  int rank;                  ///< there
  std::vector<int> members;  ///< ranks here, in rank order
};
[[nodiscard]] NewSeat new_seat(const std::vector<int>& colors, int rank);

}  // namespace troupe::detail
