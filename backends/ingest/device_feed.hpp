#pragma once

#include <troupe/data/tensor_dict.hpp>
#include <troupe/device.hpp>

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace troupe::detail {

/// Brings batches to a device with memory of its own: packed into pinned memory by whoever made them, copied on a stream beside compute, one batch
/// ahead of the loop. Pinned memory is used again, so there are as many slabs as batches are on their way.
class DeviceFeed {
 public:
  explicit DeviceFeed(DeviceRuntime& runtime);

  /// A batch in pinned memory. Empty: nothing.
  struct Packed {
    Batch batch;                  ///< tensors that look into `slab`
    std::shared_ptr<void> slab;
  };
  /// Any thread.
  [[nodiscard]] Packed pack(const Batch& batch);

  /// A batch whose copy was begun.
  struct Coming {
    Batch batch;
    std::shared_ptr<const Event> event;
    std::shared_ptr<void> slab;
  };
  /// Training thread. The copy begins after what compute has been given so far, whose memory it may use again.
  [[nodiscard]] Coming begin_copy(Packed packed);
  /// Training thread. What compute is given from here on begins after the copy.
  [[nodiscard]] Batch finish(Coming coming);

 private:
  struct Pool {
    struct Slab {
      std::shared_ptr<void> memory;
      std::size_t bytes;
      std::shared_ptr<const Event> busy;  ///< until this has passed
    };
    std::mutex mutex;
    std::vector<Slab> free;
  };
  [[nodiscard]] std::shared_ptr<void> slab(std::size_t bytes);

  DeviceRuntime& runtime_;
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  std::unique_ptr<Stream> copies_;  // last: waits for its work
};

}  // namespace troupe::detail
