#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace troupe::detail {

/// A regular expression of a tokenizer.json, which are written for Oniguruma, run by ICU.
/// Constructs that the two read differently are translated where that is exact and refused by name
/// where it is not.
///
/// Threads: any number at once.
class Regex {
 public:
  /// `where` names file and key in messages. Throws Failure{Unsupported} for a construct that is
  /// refused, FileCorrupt for a pattern that is none.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Calls `use(begin, end)` for each match from the left, in bytes. Throws Failure{DataMalformed}
  /// when the pattern takes too much time or stack on this text.
  void for_each_match(std::string_view text,
                      const std::function<void(std::size_t, std::size_t)>& use) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::detail
