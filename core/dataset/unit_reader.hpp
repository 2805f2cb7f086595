#pragma once

#include "plan.hpp"

namespace troupe::detail {

/// Rows [first_row, last_row) of a fragment, as they were read.
struct Unit {
  Batches batches;
  std::int64_t first_row = 0;
  std::int64_t last_row = 0;
  bool ends_fragment = false;
};

/// A fragment's rows in units that lie on a grid of `unit_rows` from the fragment's beginning, however the reader cuts its blocks and wherever
/// reading begins: the same unit is made again when a stream is resumed.
class UnitReader {
 public:
  /// @param last_row one past the last row wanted; nothing: to the end of the fragment.
  UnitReader(const Source& source, std::int64_t fragment, std::int64_t first_row, std::optional<std::int64_t> last_row, std::int64_t unit_rows,
             ReadOptions options);
  [[nodiscard]] std::optional<Unit> next();

 private:
  bool fill();
  const Source& source_;
  std::int64_t fragment_;
  std::int64_t at_;                        ///< next row to hand out
  std::optional<std::int64_t> last_row_;
  std::optional<std::int64_t> known_rows_;
  std::int64_t unit_rows_;
  std::unique_ptr<FragmentReader> reader_;
  std::optional<Block> block_;             ///< read, not handed out in full
  bool ended_ = false;
};

}  // namespace troupe::detail
