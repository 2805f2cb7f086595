#include "request.hpp"

#include "kernels.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace troupe::detail {

namespace {

[[noreturn]] void wrong(Call call, const std::string& text) {
  throw Failure{Errc::InvalidArgument, std::string{name(call)} + ": " + text};
}

void check(Call call, ConstBuffer buffer) {
  if (buffer.bytes % size_of(buffer.dtype) != 0)
    wrong(call, std::to_string(buffer.bytes) + " bytes are no whole number of " + std::string{name(buffer.dtype)});
  if (buffer.bytes != 0 && buffer.data == nullptr) wrong(call, "no memory given");
}

void check_parts(Call call, ConstBuffer whole, ConstBuffer part, int size) {
  if (whole.count() != part.count() * static_cast<std::size_t>(size))
    wrong(call, std::to_string(whole.bytes) + " bytes " + std::string{name(whole.dtype)} + " are not " + std::to_string(size) +
                    " times " + std::to_string(part.bytes) + " bytes " + std::string{name(part.dtype)});
}

void check_ranges(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, int rank, int size) {
  const auto call = Call::ReduceToOwners;
  if (begins.size() != static_cast<std::size_t>(size) + 1)
    wrong(call, std::to_string(begins.size()) + " bounds, where " + std::to_string(size) + " ranks need one more than there are ranks");
  if (begins.front() != 0 || begins.back() != buffer.count() || !std::is_sorted(begins.begin(), begins.end()))
    wrong(call, "the ranges do not cover the " + std::to_string(buffer.count()) + " elements in ascending order");
  const auto r = static_cast<std::size_t>(rank);
  if (output.count() != begins[r + 1] - begins[r])
    wrong(call, "an output of " + std::to_string(output.count()) + " elements for a range of " + std::to_string(begins[r + 1] - begins[r]));
}

/// Ranks whose ranges differ must not meet.
std::int32_t hash_of(std::span<const std::size_t> begins) {
  std::uint64_t hash = 14695981039346656037U;  // FNV-1a, a word at a time
  for (const auto begin : begins) hash = (hash ^ begin) * 1099511628211U;
  return static_cast<std::int32_t>(hash ^ (hash >> 32));
}

class Failed final : public Work::State {
 public:
  explicit Failed(Outcome outcome) : outcome_(std::move(outcome)) {}
  bool poll() override { return true; }
  Outcome wait() override { return outcome_; }

 private:
  Outcome outcome_;
};

}  // namespace

bool widens(const Request& request) noexcept {
  return (request.input.dtype == DType::BF16 || request.input.dtype == DType::F16) && request.output.dtype == DType::F32;
}

void check(const Request& request, int rank, int size) {
  const auto call = request.call;
  check(call, request.input);
  check(call, request.output);
  if (request.reduces()) check_reducible(request.dtype(), request.op);
  if (call == Call::ReduceScatter) check_parts(call, request.input, request.output, size);
  if (call == Call::ReduceToOwners) check_ranges(request.input, request.begins, request.output, rank, size);
  if (call == Call::AllGather) check_parts(call, request.output, request.input, size);
  if (call == Call::Broadcast && (request.root < 0 || request.root >= size))
    wrong(call, "no rank " + std::to_string(request.root) + " in a group of " + std::to_string(size));
  const bool two_buffers = call == Call::ReduceScatter || call == Call::AllGather || call == Call::ReduceToOwners;
  if (two_buffers && request.input.dtype != request.output.dtype && !(request.reduces() && widens(request)))
    wrong(call, "input and output of different types: " + std::string{name(request.input.dtype)} + " and " +
                    std::string{name(request.output.dtype)});
}

Work failed_work(Outcome outcome) { return Work{std::make_shared<Failed>(std::move(outcome))}; }

Work perform(Communicator& group, const Request& request) {
  switch (request.call) {
    case Call::AllReduce: return group.all_reduce(request.output, request.op);
    case Call::ReduceScatter: return group.reduce_scatter(request.input, request.output, request.op);
    case Call::ReduceToOwners: return group.reduce_to_owners(request.input, request.begins, request.output, request.op);
    case Call::AllGather: return group.all_gather(request.input, request.output);
    case Call::Broadcast: return group.broadcast(request.output, request.root);
    case Call::Barrier: break;
  }
  return group.barrier();
}

Work RequestCommunicator::checked(const Request& request) {
  check(request, rank(), size());
  return post(request);
}

Work RequestCommunicator::all_reduce(Buffer buffer, ReduceOp op) {
  return checked({.call = Call::AllReduce, .op = op, .input = buffer, .output = buffer});
}
Work RequestCommunicator::reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) {
  return checked({.call = Call::ReduceScatter, .op = op, .input = input, .output = output});
}
Work RequestCommunicator::reduce_to_owners(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, ReduceOp op) {
  return checked(
      {.call = Call::ReduceToOwners, .op = op, .root = hash_of(begins), .input = buffer, .output = output, .begins = begins});
}
Work RequestCommunicator::all_gather(ConstBuffer input, Buffer output) {
  return checked({.call = Call::AllGather, .input = input, .output = output});
}
Work RequestCommunicator::broadcast(Buffer buffer, int root) {
  return checked({.call = Call::Broadcast, .root = root, .input = root == rank() ? ConstBuffer{buffer} : ConstBuffer{}, .output = buffer});
}
Work RequestCommunicator::barrier() { return checked({.call = Call::Barrier, .input = {}, .output = {}}); }

std::shared_ptr<void> allocate_from_heap(std::size_t bytes) {
  const std::align_val_t alignment{64};
  void* memory = ::operator new(bytes, alignment);
  std::memset(memory, 0, bytes);
  return {memory, [alignment](void* p) { ::operator delete(p, alignment); }};
}

std::vector<int> exchange_colors(Communicator& group, int color) {
  if (color < 0) throw Failure{Errc::InvalidArgument, "split: a color is 0 or more, not " + std::to_string(color)};
  std::vector<int> colors(static_cast<std::size_t>(group.size()));
  group.all_gather({&color, sizeof color, DType::I32}, {colors.data(), colors.size() * sizeof color, DType::I32}).wait().or_throw();
  return colors;
}

NewSeat new_seat(const std::vector<int>& colors, int rank) {
  NewSeat seat{0, {}};
  for (int r = 0; r < static_cast<int>(colors.size()); ++r) {
    if (colors[static_cast<std::size_t>(r)] != colors[static_cast<std::size_t>(rank)]) continue;
    if (r < rank) ++seat.rank;
    seat.members.push_back(r);
  }
  return seat;
}

}  // namespace troupe::detail
