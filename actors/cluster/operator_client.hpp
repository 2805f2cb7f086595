#pragma once

#include "operator_messages.hpp"

#include <chrono>
#include <memory>
#include <string>

namespace troupe::detail {

/// An operator's end of a head: asks one thing at a time.
/// Threads: one caller at a time. Errors: every call throws Failure{DeadlinePassed, NetworkFailed, …} that names the head, {Cancelled} when its program has
/// ended, or what the head refused with.
class OperatorClient {
 public:
  /// Connects. @param head "HOST:PORT"  @param limit of connecting, and of every call after it
  OperatorClient(std::string head, const ClusterSecurity& security, std::chrono::milliseconds limit);
  ~OperatorClient();
  OperatorClient(const OperatorClient&) = delete;
  OperatorClient& operator=(const OperatorClient&) = delete;

  [[nodiscard]] ClusterStatus status();
  /// @param wait with `order.follow`: longest wait for a line; a page without lines when none came (the head still waits: ask for the same again)
  [[nodiscard]] LogPage logs(const LogsOrder& order, std::chrono::milliseconds wait);
  void stop(const std::string& run, bool now);
  void drain(const std::string& node);

 private:
  struct Inner;
  std::unique_ptr<Inner> inner_;
};

}  // namespace troupe::detail
