#include <troupe/device_batches.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace troupe {

namespace {

constexpr std::int64_t alignment = 64;

class DeviceBatches {
 public:
  explicit DeviceBatches(DeviceRuntime& runtime)
      : runtime_(runtime),
        device_(runtime.device().kind == Device::Kind::Cpu ? at::Device{at::kCPU}
                                                           : at::Device{at::kCUDA, static_cast<c10::DeviceIndex>(runtime.device().index)}),
        copies_(runtime.create_stream()) {}

  std::function<Batch()> begin(Batch batch);

 private:
  struct Buffer {
    std::shared_ptr<void> pinned;
    std::int64_t size = 0;
    std::shared_ptr<const Event> copied;  // out of it
    at::Tensor to;                        // until compute waits for the copy: its memory must not be used for anything else
  };
  struct Part {
    std::string name;
    at::Tensor tensor;
    std::int64_t offset = -1;  // in the buffer; -1: not by way of it
  };

  DeviceRuntime& runtime_;
  at::Device device_;
  std::array<Buffer, 2> buffers_;
  std::size_t turn_ = 0;
  std::unique_ptr<Stream> copies_;  // last: waits for its work
};

std::function<Batch()> DeviceBatches::begin(Batch batch) {
  auto& buffer = buffers_[turn_++ % buffers_.size()];
  std::vector<Part> parts;
  std::int64_t bytes = 0;
  for (auto& [name, tensor] : batch) {
    Part part{name, tensor.detach(), -1};
    if (tensor.layout() == at::kStrided && tensor.is_cpu() && tensor.nbytes() > 0) {
      part.tensor = part.tensor.contiguous();
      part.offset = bytes;
      bytes += (static_cast<std::int64_t>(tensor.nbytes()) + alignment - 1) / alignment * alignment;
    }
    parts.push_back(std::move(part));
  }
  if (buffer.copied) std::exchange(buffer.copied, nullptr)->synchronize();
  if (buffer.size < bytes) {
    buffer.pinned = runtime_.allocate_pinned(static_cast<std::size_t>(bytes));
    buffer.size = bytes;
  }
  for (const auto& part : parts) {
    if (part.offset >= 0) std::memcpy(static_cast<std::byte*>(buffer.pinned.get()) + part.offset, part.tensor.const_data_ptr(), part.tensor.nbytes());
  }
  const auto to = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device_));
  copies_->wait(*runtime_.compute_stream().record());  // memory comes in compute's order (decision 0014)
  if (bytes > 0) copies_->copy_async(to.mutable_data_ptr(), buffer.pinned.get(), static_cast<std::size_t>(bytes));
  buffer.copied = copies_->record();
  buffer.to = to;
  return [this, &buffer, to, event = buffer.copied, parts = std::move(parts)] {
    runtime_.compute_stream().wait(*event);
    if (buffer.copied == event) buffer.to = {};
    Batch arrived;
    for (const auto& part : parts) {
      const auto& t = part.tensor;
      arrived.set(part.name, part.offset < 0 ? t.to(device_)
                                             : to.narrow(0, part.offset, static_cast<std::int64_t>(t.nbytes())).view(t.scalar_type()).view(t.sizes()));
    }
    return arrived;
  };
}

}  // namespace

DataLoader::Transfer to_device(DeviceRuntime& runtime) {
  return [batches = std::make_shared<DeviceBatches>(runtime)](Batch batch) -> std::function<Batch()> {
    return [batches, arrive = batches->begin(std::move(batch))] { return arrive(); };
  };
}

}  // namespace troupe
