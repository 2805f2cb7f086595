#include <troupe/errors.hpp>
#include <troupe/instruct_data.hpp>

#include <algorithm>

namespace troupe {

namespace {

LabeledTokens encode_plain(const Tokenizer& tokenizer, const std::string& text) {
  LabeledTokens out{tokenizer.encode(text), {}};
  out.labels = out.ids;
  return out;
}

/// Ids and labels of one example, ended by eos.
LabeledTokens encode_example(const Tokenizer& tokenizer, const TextExample& example, bool mask_prompt) {
  LabeledTokens out;
  if (!example.messages.empty()) {
    out = encode_chat(tokenizer, recognize_chat_format(tokenizer.chat_template()), example.messages);
  } else if (!example.prompt.empty()) {
    out = encode_completion(tokenizer, example.prompt, example.text);
  } else {
    out = encode_plain(tokenizer, example.text);
  }
  if (!mask_prompt) out.labels = out.ids;
  const auto eos = tokenizer.special_ids().eos;
  if (eos && (out.ids.empty() || out.ids.back() != *eos) && example.messages.empty()) {
    out.ids.push_back(*eos);
    out.labels.push_back(*eos);
  }
  return out;
}

bool is_trained(const TokenRow& row) {
  // The first label is never predicted.
  return row.labels.size() > 1 && std::ranges::any_of(row.labels.begin() + 1, row.labels.end(), [](auto label) { return label != kIgnoredLabel; });
}

std::vector<TokenRow> single_rows(const Tokenizer& tokenizer, const std::vector<TextExample>& examples, const RowOptions& options) {
  std::vector<TokenRow> out;
  for (const auto& example : examples) {
    auto tokens = encode_example(tokenizer, example, options.mask_prompt);
    const auto length = std::min(tokens.ids.size(), options.context_length);
    tokens.ids.resize(length);
    tokens.labels.resize(length);
    TokenRow row{std::move(tokens.ids), std::move(tokens.labels), {}, {}};
    if (is_trained(row)) out.push_back(std::move(row));
  }
  return out;
}

std::vector<TokenRow> packed_rows(const Tokenizer& tokenizer, const std::vector<TextExample>& examples, const RowOptions& options) {
  PackOptions pack;
  pack.context_length = options.context_length;
  pack.mode = options.packing == Packing::Split ? PackMode::Split : PackMode::Whole;
  pack.pad_id = pad_id_of(tokenizer);
  pack.drop_last = options.packing == Packing::Split;
  SequencePacker packer{pack};
  std::vector<TokenRow> out;
  const auto take = [&] {
    while (auto packed = packer.next()) {
      TokenRow row{std::move(packed->ids), std::move(packed->labels), {}, {}};
      if (options.packing == Packing::Whole) {
        row.segment_ids = std::move(packed->segment_ids);
        row.position_ids = std::move(packed->position_ids);
      }
      if (is_trained(row)) out.push_back(std::move(row));
    }
  };
  for (const auto& example : examples) {
    const auto tokens = encode_example(tokenizer, example, options.mask_prompt);
    packer.add(tokens.ids, tokens.labels);
    take();
  }
  packer.finish();
  take();
  return out;
}

}  // namespace

std::int64_t pad_id_of(const Tokenizer& tokenizer) {
  const auto ids = tokenizer.special_ids();
  return ids.pad ? *ids.pad : ids.eos.value_or(0);
}

std::vector<TokenRow> make_rows(const Tokenizer& tokenizer, const std::vector<TextExample>& examples, const RowOptions& options) {
  if (options.context_length < 2) throw Failure{Errc::InvalidArgument, "make_rows: context_length is " + std::to_string(options.context_length) + ", not at least 2"};
  auto rows = options.packing == Packing::None ? single_rows(tokenizer, examples, options) : packed_rows(tokenizer, examples, options);
  if (rows.empty())
    throw Failure{Errc::DataMalformed, "no row of " + std::to_string(options.context_length) + " tokens has anything to train on (too little text, or prompts that fill the context)"};
  return rows;
}

}  // namespace troupe
