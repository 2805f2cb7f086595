#pragma once

#include <troupe/communicator.hpp>

#include <optional>
#include <string>
#include <vector>

namespace troupe::detail {

// What a group of several hosts needs of its ranks' group inside a host, beyond the contract. On communicators that are not over
// shared memory these do what the contract can: nothing, an abort, no answer.

/// Lets failures name the ranks by `ranks`, as they are known in the whole group. Before the first collective.
void know_ranks_as(Communicator& local, const std::vector<int>& ranks);
/// `abort` with another code. Any thread.
void fail_group(Communicator& local, Errc code, const std::string& text) noexcept;
/// What the group died of, if it did. Any thread.
[[nodiscard]] std::optional<Outcome> failure_of(Communicator& local) noexcept;

/// A label that stands for the whole call in failures: `text` instead of "all_gather #3 of `text` (U8 x 64)".
[[nodiscard]] std::string whole_label(const std::string& text);

}  // namespace troupe::detail
