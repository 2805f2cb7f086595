#pragma once

#include <troupe/device.hpp>

#include <cstring>

namespace troupe::detail {

/// The calling thread as a stream: what it is given is done when the call returns.
class HostStream final : public Stream {
 public:
  std::shared_ptr<const Event> record() override {
    struct Passed final : Event {
      bool query() const override { return true; }
      void synchronize() const override {}
    };
    static const auto passed = std::make_shared<const Passed>();
    return passed;
  }
  void wait(const Event& event) override { event.synchronize(); }
  void copy_async(void* to, const void* from, std::size_t bytes) override {
    if (bytes) std::memcpy(to, from, bytes);
  }
  void fill_async(void* to, std::uint8_t value, std::size_t bytes) override {
    if (bytes) std::memset(to, value, bytes);
  }
};

}  // namespace troupe::detail
