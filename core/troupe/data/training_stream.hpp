#pragma once

#include <troupe/data/data_loader.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// What an Accelerator asks of batches that come as a stream, of a length that nobody knows before: of a DataIterator.
///
/// Threads: the training thread.
class TrainingStream {
 public:
  virtual ~TrainingStream() = default;
  /// The data set's; the same on every rank.
  [[nodiscard]] virtual const std::string& name() const noexcept = 0;
  [[nodiscard]] virtual const LoaderState& state() const noexcept = 0;
  /// How many rows of the batch under way are real, when on any rank some may be padding; then all ranks have a number here.
  [[nodiscard]] virtual std::optional<std::int64_t> real_rows() const noexcept = 0;
  /// As DataLoader::set_asked.
  virtual void set_asked(DataLoader::Asked asked) = 0;
  /// The epoch that runs now or was left early; else the one that begins next.
  [[nodiscard]] virtual std::int64_t epoch() const noexcept = 0;

  /// This rank's first batch that was not handed out yet, as bytes.
  [[nodiscard]] virtual std::string position() const = 0;
  /// Goes on from what every rank's `position()` was, by rank. With as many ranks as now the batches to come are the same; else each
  /// row that was still to come comes once, on some rank. Throws Failure{FileCorrupt, InvalidArgument}.
  virtual void resume(const std::vector<std::string>& positions) = 0;
};

}  // namespace troupe
