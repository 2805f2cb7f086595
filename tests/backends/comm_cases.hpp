#pragma once

#include "comm_ranks.hpp"

namespace troupe::testing_ranks {

/// What every Communicator must do. Adds the bodies to `registry()`:
///   collectives <elements>  every collective × reduction × dtype, on buffers of its own memory and of the heap
///   overlap                 many collectives under way at once, finished in another order
///   in_place                scatter and gather in a part of the whole
///   deadline                rank 1 does not come; everybody else names it, and later calls say the same
///   mismatch                rank 1 calls something else
///   other_label             rank 1 calls the same under another label
///   astray                  rank 2 calls something else, and rank 1 does not come
///   traffic                 counted bytes against the formulas
///   record <collectives>    the flight recorder's entries
///   owners                  uneven and empty parts reduced to their owners
///   widened                 16-bit floats scattered as fp32 sums
///   split <rounds>          groups of a part of the ranks, and of a part of those, used in turn with the first
///   abort_from_rank_0       rank 0 aborts while the others wait for it; all say when
///   abort_parent            rank 0 aborts the group; ranks that wait in a split one are free (they say when)
///   lost_in_split           rank 3 does not come in a split group; its peer there names it by its first rank
///   bad_arguments           wrong sizes, roots and types throw
void register_contract(bool whole_dtypes);
/// Those of groups that end otherwise than planned; part of the contract.
void register_faults();
/// Of the bodies abort_…: each rank is free within 100 ms of rank 0's abort, in the best of five tries: a busy machine may be late by itself.
void expect_freed_in_time(const std::function<std::vector<RankResult>()>& run);

}  // namespace troupe::testing_ranks
