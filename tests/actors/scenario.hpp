#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/trainer.hpp>

#include <atomic>
#include <caf/all.hpp>
#include <chrono>
#include <deque>
#include <filesystem>
#include <string>
#include <thread>
#include <unistd.h>

namespace troupe {

/// A directory that is gone after the test.
class TempDir {
 public:
  TempDir() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Everything that an actor was sent, for a test to look at.
struct Inbox {
  template <class Message>
  bool is_next() const {
    return !messages.empty() && messages.front().match_elements<Message>();
  }
  /// Takes the next message, which must be a `Message`.
  template <class Message>
  Message take() {
    if (messages.empty()) throw std::runtime_error{"no message"};
    if (!messages.front().match_elements<Message>()) throw std::runtime_error{"another message: " + to_string(messages.front())};
    auto message = messages.front().get_as<Message>(0);
    messages.pop_front();
    return message;
  }
  bool empty() const { return messages.empty(); }
  std::deque<caf::message> messages;
};

}  // namespace troupe
