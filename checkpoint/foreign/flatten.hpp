#pragma once

#include <map>
#include <string>
#include <string_view>
#include <troupe/foreign.hpp>

namespace troupe::detail {

/// Adds what `value` holds under `prefix` (which names it when it is no container). At most 1 M
/// names of 64 MB in all. Throws Failure{FileCorrupt} for two values of one name.
void flatten(const PickleValue& value, const std::string& prefix, ForeignContents& out);

/// The members of a dict that have names, for many look-ups. Of equal keys the last one counts.
[[nodiscard]] std::map<std::string_view, PickleValue> members_of(const PickleValue& dict);

/// A name that lies in the same directory: no slash, no "..", no NUL, not empty.
[[nodiscard]] bool is_plain_file_name(std::string_view name) noexcept;

}  // namespace troupe::detail
