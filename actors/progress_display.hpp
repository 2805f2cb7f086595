#pragma once

#include <troupe/messages.hpp>

#include <chrono>
#include <optional>
#include <string>

namespace troupe {

/// "epoch 1/3 · step 20/300 · loss 0.312 · 210 samples/s · 0:42 left", as much of it as is known.
[[nodiscard]] std::string describe(const Progress& progress, std::optional<std::chrono::seconds> left);
/// "epoch=1 accuracy=0.8925".
[[nodiscard]] std::string describe(const Metrics& metrics);
/// "0:42", "12:05", "3:00:10".
[[nodiscard]] std::string describe(std::chrono::seconds time);

/// Shows a run on stderr: on a terminal one line that is rewritten, elsewhere a line every few seconds.
///
/// Threads: one caller at a time.
class ProgressDisplay {
 public:
  using Clock = std::chrono::steady_clock;

  explicit ProgressDisplay(bool enabled);
  ~ProgressDisplay() { clear_line(); }

  void started(const RunStarted& news);
  void progressed(const Progress& progress);
  void reported(const ReportRecord& report);
  void committed(const CheckpointRecord& checkpoint);
  void ended(const Result& result);
  /// Always shown.
  void warn(const std::string& text);

 private:
  void line(const std::string& text);
  void clear_line();
  [[nodiscard]] std::optional<std::chrono::seconds> time_left(const Progress& progress);

  bool enabled_;
  bool terminal_;
  bool line_open_ = false;
  int reports_hidden_ = 0;
  Clock::time_point next_report_, next_progress_;
  std::optional<std::pair<Clock::time_point, std::int64_t>> first_step_;
};

}  // namespace troupe
