#include <troupe/errors.hpp>
#include <troupe/tokenizer.hpp>

namespace troupe {

std::vector<std::int64_t> Tokenizer::encode(std::string_view text,
                                            const EncodeOptions& options) const {
  TokenBatch out;
  append(text, nullptr, options, out);
  return std::move(out.ids);
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view first, std::string_view second,
                                            const EncodeOptions& options) const {
  TokenBatch out;
  append(first, &second, options, out);
  return std::move(out.ids);
}

namespace {

/// Where something went wrong in a batch.
template <class F>
void each(std::size_t count, F&& act) {
  for (std::size_t i = 0; i < count; ++i) {
    try {
      act(i);
    } catch (const Failure& failure) {
      throw Failure{failure.code(), "text " + std::to_string(i) + ": " + failure.what()};
    }
  }
}

}  // namespace

TokenBatch Tokenizer::encode_batch(std::span<const std::string_view> texts,
                                   const EncodeOptions& options) const {
  TokenBatch out;
  each(texts.size(), [&](std::size_t i) { append(texts[i], nullptr, options, out); });
  return out;
}

TokenBatch Tokenizer::encode_batch(std::span<const std::string> texts,
                                   const EncodeOptions& options) const {
  TokenBatch out;
  each(texts.size(), [&](std::size_t i) { append(texts[i], nullptr, options, out); });
  return out;
}

TokenBatch Tokenizer::encode_batch(std::span<const std::string_view> firsts,
                                   std::span<const std::string_view> seconds,
                                   const EncodeOptions& options) const {
  if (firsts.size() != seconds.size())
    throw Failure{Errc::InvalidArgument, "pairs need as many second texts (" +
                                             std::to_string(seconds.size()) + ") as first ones (" +
                                             std::to_string(firsts.size()) + ")"};
  TokenBatch out;
  each(firsts.size(), [&](std::size_t i) { append(firsts[i], &seconds[i], options, out); });
  return out;
}

SpecialIds Tokenizer::special_ids() const {
  const auto id = [this](const std::optional<std::string>& token) {
    return token ? token_to_id(*token) : std::nullopt;
  };
  const auto& tokens = special_tokens();
  return {id(tokens.bos), id(tokens.eos), id(tokens.unk), id(tokens.sep),
          id(tokens.pad), id(tokens.cls), id(tokens.mask)};
}

}  // namespace troupe
