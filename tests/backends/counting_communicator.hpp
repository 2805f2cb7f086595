#pragma once

#include <troupe/communicator.hpp>

#include <vector>

namespace troupe::test {

/// Counts the bytes that gradients are reduced in, and keeps what was allocated.
class CountingCommunicator final : public Communicator {
 public:
  explicit CountingCommunicator(Communicator& inner) : inner_(inner) {}
  std::size_t all_reduced_bytes = 0;
  std::vector<const void*> allocated;

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  std::string name() const override { return inner_.name(); }
  bool reaches_any_memory() const noexcept override { return inner_.reaches_any_memory(); }
  bool widens() const noexcept override { return inner_.widens(); }
  Work all_reduce(Buffer buffer, ReduceOp op) override {
    all_reduced_bytes += buffer.bytes;
    return inner_.all_reduce(buffer, op);
  }
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override { return inner_.reduce_scatter(input, output, op); }
  Work reduce_to_owners(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, ReduceOp op) override {
    return inner_.reduce_to_owners(buffer, begins, output, op);
  }
  Work all_gather(ConstBuffer input, Buffer output) override { return inner_.all_gather(input, output); }
  Work broadcast(Buffer buffer, int root) override { return inner_.broadcast(buffer, root); }
  Work barrier() override { return inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color) override { return inner_.split(color); }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    auto memory = inner_.allocate(bytes);
    allocated.push_back(memory.get());
    return memory;
  }
  void set_timeout(std::chrono::milliseconds timeout) override { inner_.set_timeout(timeout); }
  FlightRecorder& recorder() noexcept override { return inner_.recorder(); }

 private:
  Communicator& inner_;
};

}  // namespace troupe::test
