#include "progress_display.hpp"

#include <unistd.h>

#include <cstdio>

namespace troupe {

namespace {

// Reports come at up to 10,000 a second; people read a few.
constexpr std::chrono::milliseconds report_period{200};
constexpr std::chrono::seconds progress_period{5};
constexpr std::chrono::milliseconds terminal_period{100};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

struct ValueText {
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(std::int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const { return number(value); }
  std::string operator()(const std::string& value) const { return value; }
};

std::string part(const char* name, std::int64_t value, std::int64_t of) {
  auto text = std::string(name) + " " + std::to_string(value);
  if (of > 0) text.append("/").append(std::to_string(of));
  return text;
}

}  // namespace

std::string describe(std::chrono::seconds time) {
  const auto s = time.count();
  char text[48];
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02d:%02d", static_cast<long long>(s / 3600), static_cast<int>(s / 60 % 60),
                  static_cast<int>(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(s / 60), static_cast<int>(s % 60));
  }
  return text;
}

std::string describe(const Progress& progress, std::optional<std::chrono::seconds> left) {
  std::string text;
  if (progress.epoch > 0) text += part("epoch", progress.epoch, progress.num_epochs) + " · ";
  text += part("step", progress.step, progress.num_steps) + " · loss " + number(progress.loss);
  if (progress.samples_per_s > 0) text += " · " + number(progress.samples_per_s) + " samples/s";
  if (progress.data_wait >= 0.01) text += " · " + number(100 * progress.data_wait) + " % waiting for data";
  if (left) text += " · " + describe(*left) + " left";
  return text;
}

std::string describe(const Metrics& metrics) {
  std::string text;
  for (const auto& [name, value] : metrics) {
    if (!text.empty()) text += ' ';
    text.append(name).append("=").append(std::visit(ValueText{}, value));
  }
  return text;
}

ProgressDisplay::ProgressDisplay(bool enabled) : enabled_(enabled), terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressDisplay::clear_line() {
  if (std::exchange(line_open_, false)) std::fputs("\r\033[K", stderr);
}

void ProgressDisplay::line(const std::string& text) {
  if (!enabled_) return;
  clear_line();
  std::fprintf(stderr, "%s\n", text.c_str());
}

void ProgressDisplay::warn(const std::string& text) {
  clear_line();
  std::fprintf(stderr, "warning: %s\n", text.c_str());
}

void ProgressDisplay::started(const RunStarted& news) {
  for (const auto& warning : news.warnings) warn(warning);
  line("run " + news.run_name + ", attempt " + std::to_string(news.attempt) + ", in " + news.path + " (" + std::to_string(news.world_size) +
       (news.world_size == 1 ? " rank" : " ranks") + (news.resumes_from.empty() ? "" : ", from " + news.resumes_from) + ")");
  first_step_.reset();
}

std::optional<std::chrono::seconds> ProgressDisplay::time_left(const Progress& progress) {
  const auto now = Clock::now();
  if (!first_step_) first_step_.emplace(now, progress.step);
  const auto steps = progress.step - first_step_->second;
  if (progress.num_steps <= 0 || steps <= 0) return std::nullopt;
  const std::chrono::duration<double> each = (now - first_step_->first) / static_cast<double>(steps);
  return std::chrono::duration_cast<std::chrono::seconds>(each * static_cast<double>(progress.num_steps - progress.step));
}

void ProgressDisplay::progressed(const Progress& progress) {
  const auto left = time_left(progress);
  if (!enabled_ || Clock::now() < next_progress_) return;
  if (!terminal_) {
    next_progress_ = Clock::now() + progress_period;
    return line(describe(progress, left));
  }
  next_progress_ = Clock::now() + terminal_period;
  std::fprintf(stderr, "\r\033[K%s", describe(progress, left).c_str());
  std::fflush(stderr);
  line_open_ = true;
}

void ProgressDisplay::reported(const ReportRecord& report) {
  if (!enabled_) return;
  if (Clock::now() < next_report_) {
    ++reports_hidden_;
    return;
  }
  next_report_ = Clock::now() + report_period;
  const auto hidden = std::exchange(reports_hidden_, 0);
  line("rank " + std::to_string(report.rank) + ": " + describe(report.metrics) +
       (hidden > 0 ? " (and " + std::to_string(hidden) + " reports before)" : ""));
}

void ProgressDisplay::committed(const CheckpointRecord& checkpoint) {
  line("checkpoint " + checkpoint.checkpoint.path().string());
}

void ProgressDisplay::ended(const Result& result) {
  if (result.error) {
    const auto who = result.error->rank ? "rank " + std::to_string(*result.error->rank) + ": " : std::string{};
    return line("the run failed: " + who + result.error->message + " (" + std::string(explain(result.error->code)) + ")" +
                (result.post_mortem.empty() ? "" : "; why: " + (result.path / result.post_mortem).string()));
  }
  line(std::string(result.preempted ? "the run was preempted: start it again to go on" : result.stopped_early ? "the run was stopped" : "the run is done") + "; everything is in " +
       result.path.string());
}

}  // namespace troupe
