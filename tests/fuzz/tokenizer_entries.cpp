#include <cstdio>
#include <cstdlib>
#include <string>
#include <troupe/errors.hpp>

#include "../../examples/tokenizers/json_tokenizer.hpp"
#include "../../examples/tokenizers/sentencepiece_tokenizer.hpp"
#include "targets.hpp"

namespace troupe::fuzz {
namespace {

/// Loads with `make` and uses what was loaded. A Failure is fine.
template <class Make>
int try_tokenizer(const Make& make) {
  try {
    const auto tokenizer = make();
    const std::string texts[] = {"", "Hello  world, it's 2024!\n",
                                 "<s>caf\xC3\xA9 \xF0\x9F\xA6\x8A</s>", "\xFF\xC3"};
    const auto batch = tokenizer->encode_batch(texts, {.max_length = 64});
    for (const auto id : batch.ids) {
      if (id < 0 || static_cast<std::size_t>(id) >= tokenizer->vocab_size()) {
        std::fprintf(stderr, "the id %lld is outside the vocabulary\n", static_cast<long long>(id));
        std::abort();
      }
    }
    (void)tokenizer->decode(batch.ids, false);
    (void)tokenizer->add_special_tokens({.additional = {"<more>"}});
  } catch (const Failure&) {
  }
  return 0;
}

}  // namespace

int tokenizer_json(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  return try_tokenizer([&] { return detail::make_json_tokenizer(text, "fuzz", {}); });
}

int tokenizer_model(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  return try_tokenizer([&] { return detail::make_sentencepiece_tokenizer(bytes, "fuzz", {}); });
}

}  // namespace troupe::fuzz
