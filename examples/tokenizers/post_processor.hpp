#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "json_section.hpp"

namespace troupe::detail {

/// What is put round one text or a pair: special tokens and where the texts go.
struct Template {
  enum class Kind : std::uint8_t { Special, First, Second };
  struct Item {
    Kind kind = Kind::First;
    std::vector<std::int64_t> ids;  ///< of a special token, most often one
    std::int64_t type_id = 0;
  };
  std::vector<Item> single, pair;

  /// The texts and nothing else.
  [[nodiscard]] static Template plain();
  /// <bos> text <eos>, each where asked for; in a pair round both texts.
  [[nodiscard]] static Template bos_eos(std::optional<std::int64_t> bos,
                                        std::optional<std::int64_t> eos);
  [[nodiscard]] static std::size_t num_special(const std::vector<Item>& items);
};

/// The `post_processor` of a tokenizer.json. `has_id(id)` says whether a token has that id.
[[nodiscard]] Template read_post_processor(JsonSection section,
                                           const std::function<bool(std::int64_t)>& has_id);

}  // namespace troupe::detail
