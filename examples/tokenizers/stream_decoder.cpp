#include <algorithm>
#include <string_view>
#include <troupe/stream_decoder.hpp>
#include <troupe/tokenizer.hpp>

namespace troupe {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
constexpr std::size_t kMaxWaiting =
    16;  // ids: bytes that never become a character are then given out as they decode
constexpr std::size_t kContext =
    8;  // ids of the text before that decide how the next one is spaced

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::span<const std::int64_t> before,
                             bool skip_special_tokens)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {
  for (const auto id : before.last(std::min(before.size(), kContext))) {
    if (!skip_special_tokens || !tokenizer.is_special(id)) window_.push_back(id);
  }
  settled_ = window_.size();
}

std::string StreamDecoder::push(std::int64_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return {};
  window_.push_back(id);
  const auto before = tokenizer_->decode(std::span{window_}.first(settled_), skip_special_tokens_);
  auto text = tokenizer_->decode(window_, skip_special_tokens_);
  const bool waits = text.ends_with(kReplacement) && window_.size() - settled_ <= kMaxWaiting;
  if (waits || text.size() <= before.size()) return {};
  text.erase(0, before.size());
  window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(settled_));
  settled_ = window_.size();
  return text;
}

std::string StreamDecoder::finish() {
  const auto before = tokenizer_->decode(std::span{window_}.first(settled_), skip_special_tokens_);
  auto text = tokenizer_->decode(window_, skip_special_tokens_);
  text.erase(0, std::min(before.size(), text.size()));
  window_.clear();
  settled_ = 0;
  return text;
}

}  // namespace troupe
