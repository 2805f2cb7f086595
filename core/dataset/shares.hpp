#pragma once

#include <troupe/dataset/cursor.hpp>

#include <cstdint>
#include <vector>

namespace troupe::detail {

/// Rows that can be dealt out: a range, and how many rows come of it.
struct Piece {
  RowRange range;
  std::int64_t rows = 0;
  bool divisible = true;  ///< false: how many rows come of it is a guess; one rank takes all
};

/// The first row of every fragment of an epoch, counted through, and the number of all rows behind them.
[[nodiscard]] std::vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& counts);

/// The whole epoch.
[[nodiscard]] Piece whole_epoch(const std::vector<std::int64_t>& counts);

/// Which rows of the pieces, put one behind the other, are rank `rank`'s. Contiguous shares in rank order; equal ones as `equal` says.
/// @param counts rows of every fragment in the epoch's order.
[[nodiscard]] std::vector<RowRange> deal(const std::vector<Piece>& pieces, const std::vector<std::int64_t>& counts, int world_size, int rank,
                                         SplitEqual equal);

/// The epoch's fragments, each a piece, in such an order that contiguous shares fall to ranks on the fragments' own nodes as far as the equal
/// number of rows allows.
/// @param entry_nodes node of each fragment in the epoch's order; -1: any.
[[nodiscard]] std::vector<Piece> pieces_by_node(const std::vector<std::int64_t>& counts, const std::vector<int>& entry_nodes,
                                                const std::vector<int>& rank_nodes);

/// What all ranks together had still to do of their epoch, in the epoch's order; padding is left out. All cursors stand in one epoch.
/// @param keeps_rows every source row becomes one row, so that pieces can be divided.
[[nodiscard]] std::vector<Piece> remaining_pieces(const std::vector<DatasetCursor>& cursors, const std::vector<std::int64_t>& counts, bool keeps_rows);

/// Rows that come of the ranges, where every source row becomes one row.
[[nodiscard]] std::int64_t rows_of(const std::vector<RowRange>& ranges, const std::vector<std::int64_t>& counts);

}  // namespace troupe::detail
