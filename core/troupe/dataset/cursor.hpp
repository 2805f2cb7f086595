#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// What ranks get when the rows of an epoch cannot be divided equally.
enum class SplitEqual : std::uint8_t {
  Pad,       ///< all as many: rows from the epoch's beginning are given a second time
  Truncate,  ///< all as many: up to world_size - 1 rows at the epoch's end are left out; none when there are fewer rows than ranks
  Uneven,    ///< every row once; ranks differ (`join_uneven_inputs`)
};

/// A source row's place in an epoch: which fragment in the epoch's order, and which row of it. The end of an epoch is {number of fragments, 0}.
struct Position {
  std::int64_t fragment = 0;
  std::int64_t row = 0;
  auto operator<=>(const Position&) const = default;
};

/// Source rows that follow each other in an epoch's order, and which of the rows made from them are meant.
struct RowRange {
  Position first;
  Position last;           ///< one past
  std::int64_t skip = 0;   ///< of the rows made from them, these are left out at the beginning
  std::int64_t take = -1;  ///< and then at most so many are meant; -1: all
  bool padding = false;    ///< given a second time to make ranks equal
  bool operator==(const RowRange&) const = default;
};

/// How far a rank's stream is: exactly which rows of the epoch are still to come. A value for checkpoints; cheap to copy.
///
/// Where a block of rows (or a shuffle window) was handed out in part, its rows are kept as a range of their own with `skip`: resuming makes the
/// block again and leaves out what was handed out, so the rest is the same bit for bit, whatever the steps make of it.
struct DatasetCursor {
  std::string fingerprint;  ///< of source, steps and seeds; resuming another data set fails
  int rank = 0;
  int world_size = 1;
  SplitEqual equal = SplitEqual::Uneven;
  std::int64_t epoch = 0;
  std::int64_t rows_delivered = 0;  ///< by this rank since it began with epoch 0
  std::vector<RowRange> remaining;  ///< of this rank's share of `epoch`, in order

  [[nodiscard]] bool epoch_finished() const { return remaining.empty(); }
  /// One line of JSON with a version.
  [[nodiscard]] std::string to_json() const;
  /// Throws Failure{FileCorrupt} saying what is wrong with the text, Failure{Unsupported} for a newer version.
  [[nodiscard]] static DatasetCursor from_json(const std::string& text);
  bool operator==(const DatasetCursor&) const = default;
};

}  // namespace troupe
