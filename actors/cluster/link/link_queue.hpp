#pragma once

#include "link_frame.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

namespace troupe::detail {

/// One direction's packets, from `push` until the peer has them: numbered from 1, written in batches, kept for another connection. No locks.
class LinkQueue {
 public:
  /// Bytes that wait, this frame's included.
  std::size_t push(std::uint16_t type, std::string_view message) {
    std::string frame;
    frame.reserve(link_header_bytes + message.size());
    append_frame(frame, type, first_ + frames_.size(), message);
    bytes_ += frame.size();
    frames_.push_back(std::move(frame));
    return bytes_;
  }
  /// Appends what was not written on this connection, until `out` has `enough` bytes.
  void take(std::string& out, std::size_t enough) {
    for (; written_ < frames_.size() && out.size() < enough; ++written_) out += frames_[written_];
  }
  /// The peer has all up to `number`. Throws Failure{ProtocolError}: it cannot.
  void acknowledge(std::uint64_t number) {
    if (number >= first_ + written_) throw Failure{Errc::ProtocolError, "the peer has received packets that were never sent"};
    for (; first_ <= number; ++first_, --written_) {
      bytes_ -= frames_.front().size();
      frames_.pop_front();
    }
  }
  /// Another connection: everything after `number`, which the peer has, is to be written again. Throws Failure{ProtocolError}: it cannot have that.
  void rewind(std::uint64_t number) {
    if (number + 1 < first_) throw Failure{Errc::ProtocolError, "the peer has lost packets that it had acknowledged"};
    written_ = frames_.size();
    acknowledge(number);
    written_ = 0;
  }
  [[nodiscard]] bool all_written() const noexcept { return written_ == frames_.size(); }
  [[nodiscard]] bool empty() const noexcept { return frames_.empty(); }
  [[nodiscard]] std::size_t waiting() const noexcept { return frames_.size(); }
  /// Number of the last packet that was pushed.
  [[nodiscard]] std::uint64_t last() const noexcept { return first_ + frames_.size() - 1; }

 private:
  std::deque<std::string> frames_;
  std::uint64_t first_ = 1;   // of the front
  std::size_t written_ = 0;   // of frames_
  std::size_t bytes_ = 0;
};

}  // namespace troupe::detail
