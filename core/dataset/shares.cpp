#include "shares.hpp"

#include <algorithm>
#include <numeric>

#include <troupe/errors.hpp>
#include <troupe/split.hpp>

namespace troupe::detail {

namespace {

std::int64_t offset_of(const Position& position, const std::vector<std::int64_t>& offsets) {
  const auto fragment = static_cast<std::size_t>(position.fragment);
  if (fragment + 1 >= offsets.size()) return offsets.back();
  return offsets[fragment] + std::min(position.row, offsets[fragment + 1] - offsets[fragment]);
}

/// Never the end of a fragment, but the beginning of the next that has rows.
Position position_of(std::int64_t offset, const std::vector<std::int64_t>& offsets) {
  const auto next = std::upper_bound(offsets.begin(), offsets.end(), offset);
  if (next == offsets.end()) return {static_cast<std::int64_t>(offsets.size()) - 1, 0};
  const auto fragment = std::prev(next) - offsets.begin();
  return {fragment, offset - offsets[static_cast<std::size_t>(fragment)]};
}

/// Rows [from, to) of a piece.
RowRange cut(const Piece& piece, std::int64_t from, std::int64_t to, const std::vector<std::int64_t>& offsets) {
  RowRange range = piece.range;
  if (from == 0 && to == piece.rows) return range;
  if (range.skip > 0 || range.take >= 0) {
    // Of a block or window only its own rows can be left out. The last part stays open: it also takes what was not foreseen.
    const bool open = to == piece.rows && range.take < 0;
    range.skip += from;
    range.take = open ? -1 : to - from;
    return range;
  }
  const std::int64_t first = offset_of(range.first, offsets);
  if (from > 0) range.first = position_of(first + from, offsets);
  if (to < piece.rows) range.last = position_of(first + to, offsets);
  return range;
}

/// Appends rows [from, to) of all pieces; a piece that cannot be divided goes to where its first row goes.
void take_rows(const std::vector<Piece>& pieces, std::int64_t from, std::int64_t to, const std::vector<std::int64_t>& offsets, bool padding,
               std::vector<RowRange>& out) {
  std::int64_t at = 0;
  for (const auto& piece : pieces) {
    const std::int64_t first = at;
    at += piece.rows;
    if (piece.rows == 0) continue;
    RowRange range;
    if (piece.divisible) {
      const std::int64_t a = std::max(from, first);
      const std::int64_t b = std::min(to, at);
      if (a >= b) continue;
      range = cut(piece, a - first, b - first, offsets);
    } else {
      if (first < from || first >= to) continue;
      range = piece.range;
    }
    range.padding = padding;
    const bool joins = !out.empty() && out.back().last == range.first && out.back().skip == 0 && out.back().take < 0 && range.skip == 0 &&
                       range.take < 0 && out.back().padding == padding;
    if (joins)
      out.back().last = range.last;
    else
      out.push_back(range);
  }
}

}  // namespace

std::vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

Piece whole_epoch(const std::vector<std::int64_t>& counts) {
  return {{{0, 0}, {static_cast<std::int64_t>(counts.size()), 0}}, std::accumulate(counts.begin(), counts.end(), std::int64_t{0})};
}

std::vector<RowRange> deal(const std::vector<Piece>& pieces, const std::vector<std::int64_t>& counts, int world_size, int rank, SplitEqual equal) {
  const auto offsets = offsets_of(counts);
  std::int64_t total = 0;
  for (const auto& piece : pieces) total += piece.rows;
  std::vector<RowRange> share;
  if (equal == SplitEqual::Uneven) {
    const IndexRange mine = split_range(total, world_size, rank);
    take_rows(pieces, mine.first, mine.first + mine.count, offsets, false, share);
    return share;
  }
  if (total == 0) return share;
  const std::int64_t each = equal == SplitEqual::Truncate ? total / world_size : (total + world_size - 1) / world_size;
  std::int64_t from = each * rank;
  std::int64_t left = each;
  // Past the end it goes on from the beginning, as often as needed when there are fewer rows than ranks.
  const bool first_time = from < total;
  for (bool padding = !first_time; left > 0; padding = true) {
    from %= total;
    const std::int64_t count = std::min(left, total - from);
    take_rows(pieces, from, from + count, offsets, padding, share);
    from += count;
    left -= count;
  }
  return share;
}

std::vector<Piece> pieces_by_node(const std::vector<std::int64_t>& counts, const std::vector<int>& entry_nodes, const std::vector<int>& rank_nodes) {
  if (entry_nodes.size() != counts.size()) throw Failure{Errc::InvalidArgument, "fragment_nodes must name a node for each of the source's fragments"};
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  const auto num_ranks = static_cast<std::int64_t>(rank_nodes.size());
  std::vector<std::vector<std::size_t>> mine(rank_nodes.size());
  std::vector<std::int64_t> room(rank_nodes.size());
  for (std::size_t r = 0; r < rank_nodes.size(); ++r) room[r] = split_range(total, static_cast<int>(num_ranks), static_cast<int>(r)).count;
  std::vector<std::size_t> anywhere;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    // The rank of that node with the most room, as long as more than half of the fragment fits.
    std::size_t best = rank_nodes.size();
    for (std::size_t r = 0; r < rank_nodes.size(); ++r)
      if (entry_nodes[i] >= 0 && rank_nodes[r] == entry_nodes[i] && 2 * room[r] > counts[i] && (best == rank_nodes.size() || room[r] > room[best])) best = r;
    if (best == rank_nodes.size()) {
      anywhere.push_back(i);
      continue;
    }
    mine[best].push_back(i);
    room[best] -= counts[i];
  }
  for (const auto i : anywhere) {
    const auto most = std::max_element(room.begin(), room.end()) - room.begin();
    mine[static_cast<std::size_t>(most)].push_back(i);
    room[static_cast<std::size_t>(most)] -= counts[i];
  }
  std::vector<Piece> pieces;
  for (const auto& fragments : mine)
    for (const auto i : fragments) {
      const auto at = static_cast<std::int64_t>(i);
      pieces.push_back({{{at, 0}, {at + 1, 0}}, counts[i]});
    }
  return pieces;
}

std::int64_t rows_of(const std::vector<RowRange>& ranges, const std::vector<std::int64_t>& counts) {
  const auto offsets = offsets_of(counts);
  std::int64_t rows = 0;
  for (const auto& range : ranges) {
    const std::int64_t made = std::max<std::int64_t>(offset_of(range.last, offsets) - offset_of(range.first, offsets) - range.skip, 0);
    rows += range.take >= 0 ? std::min(range.take, made) : made;
  }
  return rows;
}

std::vector<Piece> remaining_pieces(const std::vector<DatasetCursor>& cursors, const std::vector<std::int64_t>& counts, bool keeps_rows) {
  std::vector<Piece> pieces;
  for (const auto& cursor : cursors)
    for (const auto& range : cursor.remaining) {
      if (range.padding) continue;
      const bool partial = range.skip > 0 || range.take >= 0;
      std::int64_t rows = rows_of({range}, counts);
      // Where steps change the number of rows, what is left of a block is a guess; whole rows before it can still be divided.
      if (partial && !keeps_rows) rows = std::max<std::int64_t>(rows, 1);
      pieces.push_back({range, rows, keeps_rows || !partial});
    }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
    return a.range.first != b.range.first ? a.range.first < b.range.first : a.range.skip < b.range.skip;
  });
  return pieces;
}

}  // namespace troupe::detail
