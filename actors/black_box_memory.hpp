#pragma once

#include "child_process.hpp"

#include <troupe/black_box.hpp>

#include <memory>

namespace troupe::detail {

/// A black box's memory: zeroed, its pages taken when they are touched, unmapped at the end.
class BlackBoxMemory {
 public:
  /// Of this process only. Throws Failure{StartFailed}.
  [[nodiscard]] static std::shared_ptr<BlackBoxMemory> of_thread();
  /// To share with a child, which gets `fd()`. Throws Failure{StartFailed} naming the limit.
  [[nodiscard]] static std::shared_ptr<BlackBoxMemory> to_share();
  /// What another process made. Throws Failure{ProtocolError} when `fd` is no such memory.
  [[nodiscard]] static std::shared_ptr<BlackBoxMemory> open(int fd);
  ~BlackBoxMemory();
  BlackBoxMemory(const BlackBoxMemory&) = delete;
  BlackBoxMemory& operator=(const BlackBoxMemory&) = delete;

  [[nodiscard]] BlackBox& box() const noexcept { return *box_; }
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

 private:
  BlackBoxMemory(Fd fd, bool shared);
  Fd fd_;
  BlackBox* box_ = nullptr;
};

}  // namespace troupe::detail
