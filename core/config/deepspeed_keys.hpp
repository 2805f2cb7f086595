#pragma once

#include "section.hpp"

namespace troupe::detail {

/// Checks every key of a DeepSpeed configuration at every level; un-prefixed stage 3 names ("max_live_parameters") are
/// renamed to the ones with prefix first.
void check_deepspeed_keys(Document& document, std::vector<std::string>& notes);
/// After resolving: honoured keys that nobody read have no effect.
void check_deepspeed_read(const Document& document, const std::set<std::string>& read);

}  // namespace troupe::detail
