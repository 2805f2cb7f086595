#pragma once

#include <troupe/start_limits.hpp>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <thread>

namespace troupe::detail {

/// Runs an io_context on a thread of its own until it is destroyed; what waits then is dropped. Making one throws Failure{StartFailed}.
class IoThread {
 public:
  IoThread() : work_(io_.get_executor()), thread_(start_thread("messages of processes", [this] { io_.run(); })) {}
  ~IoThread() { stop(); }
  IoThread(const IoThread&) = delete;
  IoThread& operator=(const IoThread&) = delete;

  void stop() {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }
  boost::asio::io_context& io() noexcept { return io_; }

 private:
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace troupe::detail
