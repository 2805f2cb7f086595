#include "output_relay.hpp"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <string_view>

namespace troupe::detail {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kept_lines = 20;
constexpr std::size_t longest_line = 4000;  // with its prefix below PIPE_BUF, so that a write to a ready pipe never waits

}  // namespace

void write_line(const OutputLine& line, const std::atomic<bool>& stopping) {
  const int target = line.is_error ? STDERR_FILENO : STDOUT_FILENO;
  const auto whole = (line.rank < 0 ? "[spare] " : "[rank " + std::to_string(line.rank) + "] ") + line.text + '\n';
  std::string_view text = whole;
  while (!text.empty()) {
    pollfd ready{target, POLLOUT, 0};
    if (poll(&ready, 1, 100) == 0) {
      if (stopping) return;
      continue;
    }
    const auto written = write(target, text.data(), text.size());
    if (written < 0 && errno != EINTR && errno != EAGAIN) return;
    if (written > 0) text.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// One pipe of one rank.
class Pump : public std::enable_shared_from_this<Pump> {
 public:
  Pump(asio::io_context& io, Fd source, bool is_error, std::shared_ptr<RankOutput> output, std::shared_ptr<void> end_notice,
       const std::function<void(OutputLine)>& sink)
      : source_(io, source.release()), is_error_(is_error), output_(std::move(output)), end_notice_(std::move(end_notice)),
        sink_(sink) {}

  void read() {
    source_.async_read_some(asio::buffer(bytes_), [self = shared_from_this()](const auto& error, std::size_t size) {
      self->take({self->bytes_.data(), size});
      if (!error) return self->read();
      if (!self->line_.empty()) self->pass_on();
    });
  }

  /// Takes what is there. The read that waits goes on waiting.
  void drain() {
    std::array<char, 4096> bytes;
    for (pollfd ready{source_.native_handle(), POLLIN, 0}; poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN) != 0;) {
      const auto size = ::read(source_.native_handle(), bytes.data(), bytes.size());
      if (size <= 0) return;
      take({bytes.data(), static_cast<std::size_t>(size)});
    }
  }

 private:
  void take(std::string_view bytes) {
    for (const char byte : bytes) {
      if (byte == '\n') {
        pass_on();
      } else {
        line_ += byte;
        if (line_.size() == longest_line) pass_on();
      }
    }
  }
  void pass_on() {
    sink_({is_error_, output_->rank(), line_});
    output_->add(std::move(line_));
    line_.clear();
  }

  asio::posix::stream_descriptor source_;
  const bool is_error_;
  std::shared_ptr<RankOutput> output_;
  std::shared_ptr<void> end_notice_;
  const std::function<void(OutputLine)>& sink_;
  std::array<char, 4096> bytes_{};
  std::string line_;
};

void RankOutput::begin(int rank) {
  const std::lock_guard lock{mutex_};
  rank_ = rank;
  lines_.clear();
}

int RankOutput::rank() const {
  const std::lock_guard lock{mutex_};
  return rank_;
}

void RankOutput::add(std::string line) {
  const std::lock_guard lock{mutex_};
  lines_.push_back(std::move(line));
  if (lines_.size() > kept_lines) lines_.pop_front();
}

std::vector<std::string> RankOutput::lines() const {
  const std::lock_guard lock{mutex_};
  return {lines_.begin(), lines_.end()};
}

OutputRelay::OutputRelay(std::function<void(OutputLine)> sink) : sink_(std::move(sink)) {
  if (!sink_) sink_ = [this](const OutputLine& line) { write_line(line, stopping_); };
}

OutputRelay::~OutputRelay() {
  stopping_ = true;
  thread_.stop();
}

std::shared_ptr<RankOutput> OutputRelay::watch(int rank, Fd output, Fd error, std::function<void()> ended) {
  auto watched = std::make_shared<RankOutput>(rank);
  // Called when the last pump lets go of it.
  const std::shared_ptr<void> notice{nullptr, [ended = std::move(ended)](void*) { ended(); }};
  auto& io = thread_.io();
  for (auto& [source, is_error] : {std::pair{&output, false}, std::pair{&error, true}}) {
    auto pump = std::make_shared<Pump>(io, std::move(*source), is_error, watched, notice, sink_);
    watched->pumps_.push_back(pump);
    asio::post(io, [pump] { pump->read(); });
  }
  return watched;
}

void OutputRelay::drain(const std::shared_ptr<RankOutput>& output, std::function<void()> done) {
  asio::post(thread_.io(), [output, done = std::move(done)] {
    for (const auto& weak : output->pumps_) {
      if (const auto pump = weak.lock()) pump->drain();
    }
    done();
  });
}

}  // namespace troupe::detail
