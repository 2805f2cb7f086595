#include "unit_reader.hpp"

#include <arrow/record_batch.h>

#include <algorithm>

namespace troupe::detail {

UnitReader::UnitReader(const Source& source, std::int64_t fragment, std::int64_t first_row, std::optional<std::int64_t> last_row, std::int64_t unit_rows,
                       ReadOptions options)
    : source_(source),
      fragment_(fragment),
      at_(first_row),
      last_row_(last_row),
      known_rows_(source.fragments()[static_cast<std::size_t>(fragment)].num_rows),
      unit_rows_(unit_rows) {
  options.block_rows = unit_rows;
  // From the unit's beginning: a reader that was asked for units then cuts just there, and nothing need be cut again.
  reader_ = source.open(fragment, first_row / unit_rows * unit_rows, options);
}

/// Makes `block_` the block that has row `at_`, or a later one.
bool UnitReader::fill() {
  while (!ended_ && (!block_ || block_->first_source_row + block_->num_source_rows <= at_)) {
    block_ = reader_->next();
    ended_ = !block_;
  }
  return block_.has_value();
}

std::optional<Unit> UnitReader::next() {
  if (last_row_ && at_ >= *last_row_) return std::nullopt;
  if (!fill()) {
    const std::int64_t promised = std::min(last_row_.value_or(known_rows_.value_or(0)), known_rows_.value_or(last_row_.value_or(0)));
    if (at_ < promised)
      throw Failure{Errc::FileCorrupt, source_.fragments()[static_cast<std::size_t>(fragment_)].path + " ends after " + std::to_string(at_) + " rows, " +
                                           std::to_string(promised) + " were expected: was it changed while it is read?"};
    return std::nullopt;
  }
  Unit unit;
  unit.first_row = at_;
  std::int64_t end = (at_ / unit_rows_ + 1) * unit_rows_;
  if (last_row_) end = std::min(end, *last_row_);
  while (at_ < end && fill()) {
    const std::int64_t block_end = block_->first_source_row + block_->num_source_rows;
    const std::int64_t upto = std::min(end, block_end);
    const std::int64_t offset = std::max(at_, block_->first_source_row) - block_->first_source_row;
    // A block with bad rows left out has fewer rows than it stands for: then its last source rows count as the missing ones.
    const std::int64_t have = block_->rows ? block_->rows->num_rows() : 0;
    const std::int64_t from = std::min(offset, have);
    const std::int64_t to = std::min(upto - block_->first_source_row, have);
    if (to > from) unit.batches.push_back(from == 0 && to == have ? block_->rows : block_->rows->Slice(from, to - from));
    at_ = upto;
  }
  unit.last_row = at_;
  unit.ends_fragment = known_rows_ ? at_ >= *known_rows_ : !fill();
  return unit;
}

}  // namespace troupe::detail
