#include <arrow/record_batch.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "pipeline.hpp"

namespace troupe {

DatasetStream::DatasetStream(std::shared_ptr<detail::Pipeline> pipeline) : pipeline_(std::move(pipeline)) {}
DatasetStream::DatasetStream(DatasetStream&&) noexcept = default;
DatasetStream& DatasetStream::operator=(DatasetStream&&) noexcept = default;
DatasetStream::~DatasetStream() = default;

std::shared_ptr<arrow::RecordBatch> DatasetStream::next() { return pipeline_->next(); }
std::shared_ptr<arrow::RecordBatch> DatasetStream::next_batch(std::int64_t batch_size, bool drop_last) {
  return pipeline_->next_batch(batch_size, drop_last);
}
DatasetCursor DatasetStream::cursor() const { return pipeline_->cursor(); }
std::int64_t DatasetStream::padding_rows() const { return pipeline_->padding_rows(); }
StreamStats DatasetStream::stats() const { return pipeline_->stats(); }
void DatasetStream::stop() noexcept { pipeline_->stop(); }

namespace {

std::string format(const char* pattern, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(line, sizeof line, pattern, arguments);
  va_end(arguments);
  return line;
}

double seconds(std::chrono::nanoseconds time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

std::string StreamStats::to_string() const {
  std::size_t width = 5;
  for (const auto& stage : stages) width = std::max(width, stage.name.size());
  width = std::min<std::size_t>(width, 40);
  const int w = static_cast<int>(width);
  std::string text = format("%-*s %7s %9s %12s %12s %10s %12s %8s %9s %9s %6s\n", w, "stage", "threads", "blocks", "rows in", "rows out", "MB out",
                            "rows/s busy", "busy s", "no work s", "no room s", "queue");
  for (const auto& stage : stages) {
    const double busy = seconds(stage.busy);
    text += format("%-*.*s %7s %9lld %12lld %12lld %10.1f %12.0f %8.2f %9.2f %9.2f %6lld\n", w, w, stage.name.c_str(),
                   stage.concurrency > 0 ? std::to_string(stage.concurrency).c_str() : "-", static_cast<long long>(stage.blocks),
                   static_cast<long long>(stage.rows_in), static_cast<long long>(stage.rows_out), static_cast<double>(stage.bytes_out) / 1e6,
                   busy > 0 ? static_cast<double>(stage.rows_in) / busy : 0.0, busy, seconds(stage.waited_in), seconds(stage.waited_out),
                   static_cast<long long>(stage.queued_blocks));
  }
  const double s = seconds(age);
  text += format("taken: %lld rows in %lld batches, %.0f rows/s over %.2f s; waited for data %.2f s (%.1f %%); first after %.0f ms\n",
                 static_cast<long long>(rows), static_cast<long long>(batches), s > 0 ? static_cast<double>(rows) / s : 0.0, s, seconds(consumer_waited),
                 s > 0 ? 100 * seconds(consumer_waited) / s : 0.0, 1e3 * seconds(first_batch));
  text += format("held: %.1f MB now, %.1f MB at most; bad rows skipped: %lld\n", static_cast<double>(held_bytes) / 1e6,
                 static_cast<double>(peak_bytes) / 1e6, static_cast<long long>(skipped_rows));
  return text;
}

}  // namespace troupe
