#include "json_tokenizer.hpp"

#include <troupe/errors.hpp>

#include "../text/bert_words.hpp"
#include "../text/clean_up.hpp"
#include "decoders.hpp"
#include "models.hpp"
#include "normalizers.hpp"
#include "pre_tokenizers.hpp"
#include "pretrained_tokenizer.hpp"
#include "unicode_text.hpp"
#include "word_cache.hpp"

namespace troupe::detail {
namespace {

using nlohmann::json;

/// What one thread needs while it encodes a text.
struct Scratch {
  WordCache cache;
  Pieces pieces;
  std::string valid, normal, wide, spelled;
};

class JsonTokenizer final : public PretrainedTokenizer {
 public:
  JsonTokenizer(std::string text, const std::string& file, PretrainedConfig config)
      : PretrainedTokenizer(std::move(config)), text_(std::move(text)) {
    auto document = parse_json_object(text_, file);
    apply_config(document);
    JsonSection root{document, file, ""};
    for (const auto* key : {"version", "truncation", "padding"})
      root.ignore(key);  // a caller's own: EncodeOptions, PadOptions
    model_ = read_model(root.section("model"));
    if (root.has("normalizer")) normalizer_ = read_normalizer(root.section("normalizer"));
    if (root.has("pre_tokenizer")) pre_ = read_pre_tokenizer(root.section("pre_tokenizer"));
    if (root.has("decoder")) decoder_ = read_decoder(root.section("decoder"));
    for (const auto* key : {"normalizer", "pre_tokenizer", "decoder"}) root.ignore(key);
    check_prefix_space(file);
    read_added(root);
    const bool has_post = root.has("post_processor");
    root.ignore("post_processor");
    root.finish();
    add_configured_tokens();
    if (has_post) {
      template_ = read_post_processor(root.section("post_processor"), [this](std::int64_t id) {
        return model_->vocabulary().has(id) || added_.find_id(id) != nullptr;
      });
    }
    apply_bos_eos(has_post);
  }

  [[nodiscard]] std::string decode(std::span<const std::int64_t> ids,
                                   bool skip_special_tokens) const override {
    std::vector<std::string> tokens;
    for (const auto id : ids) {
      const auto* const added = added_.find_id(id);
      if (added && added->special && skip_special_tokens) continue;
      if (added) {
        tokens.push_back(added->shown);
      } else if (auto token = model_token(id)) {
        tokens.push_back(*std::move(token));
      }
    }
    std::string out;
    if (decoder_) {
      decoder_->apply(tokens);
      for (const auto& token : tokens) out += token;
    } else {
      for (const auto& token : tokens)
        out.append(out.empty() && &token == &tokens.front() ? "" : " ").append(token);
    }
    if (config_.clean_up_spaces && !model_->is_bpe()) clean_up_spaces(out, false);
    return out;
  }

  void save(const std::filesystem::path& directory) const override {
    save_pretrained_config(config_, added_.by_id(), directory);
    auto document = json::parse(text_);  // not ordered_json, which searches its keys one by one
    auto list = json::array();
    for (const auto& [id, token] : added_.by_id()) {
      list.push_back({{"id", id},
                      {"content", token.content},
                      {"single_word", token.single_word},
                      {"lstrip", token.lstrip},
                      {"rstrip", token.rstrip},
                      {"normalized", token.normalized},
                      {"special", token.special}});
    }
    document["added_tokens"] = std::move(list);
    write_tokenizer_file(directory / "tokenizer.json", document.dump() + '\n');
  }

 protected:
  void append_ids(std::string_view text, std::vector<std::int64_t>& out) const override {
    auto scratch = pool_.take();
    const auto token = [&](std::int32_t id) { out.push_back(id); };
    added_.split_raw(
        valid_utf8(text, scratch->valid),
        [&](std::string_view part, std::size_t at) { append_part(part, at == 0, *scratch, out); },
        token);
  }
  [[nodiscard]] std::optional<std::int64_t> model_id(std::string_view token) const override {
    const auto id = model_->vocabulary().find(token);
    return id == Vocabulary::kNone ? std::nullopt : std::optional<std::int64_t>{id};
  }
  [[nodiscard]] std::optional<std::string> model_token(std::int64_t id) const override {
    if (!model_->vocabulary().has(id)) return std::nullopt;
    return std::string(model_->vocabulary().token(static_cast<std::int32_t>(id)));
  }
  [[nodiscard]] std::size_t model_size() const noexcept override {
    return model_->vocabulary().size();
  }
  [[nodiscard]] std::size_t model_count() const noexcept override {
    return model_->vocabulary().count();
  }
  void prepare_added() override { added_.prepare(normalizer_.get()); }

 private:
  /// tokenizer_config.json's settings of BERT's cleaning come before the file's, as in
  /// transformers.
  void apply_config(json& document) const {
    const auto normalizer = document.find("normalizer");
    if (normalizer == document.end() || !normalizer->is_object() ||
        normalizer->value("type", json()) != "BertNormalizer")
      return;
    if (config_.do_lower_case) (*normalizer)["lowercase"] = *config_.do_lower_case;
    if (config_.strip_accents) (*normalizer)["strip_accents"] = *config_.strip_accents;
    if (config_.tokenize_chinese_chars)
      (*normalizer)["handle_chinese_chars"] = *config_.tokenize_chinese_chars;
  }

  void check_prefix_space(const std::string& file) const {
    if (!pre_.add_prefix_space || !config_.add_prefix_space ||
        *pre_.add_prefix_space == *config_.add_prefix_space)
      return;
    throw Failure{Errc::Unsupported,
                  config_.file +
                      ": add_prefix_space contradicts pre_tokenizer.add_prefix_space of " + file +
                      "; make them the same"};
  }

  void read_added(JsonSection& root) {
    if (!root.has("added_tokens")) return root.ignore("added_tokens");
    for (auto& entry : root.sections("added_tokens")) {
      AddedToken token{entry.string("content"), 0};
      const auto id = entry.integer("id", -1);
      token.single_word = entry.boolean("single_word", false);
      token.lstrip = entry.boolean("lstrip", false);
      token.rstrip = entry.boolean("rstrip", false);
      token.special = entry.boolean("special", false);
      token.normalized = entry.boolean("normalized", !token.special);
      entry.finish();
      if (token.content.empty()) continue;
      token.id = id_for(token.content);
      if (token.id != id)
        entry.corrupt("id", "is " + std::to_string(id) + ", but '" + token.content + "' is " +
                                (token_to_id(token.content) ? "the token " : "added as ") +
                                std::to_string(token.id));
      const auto place = token.id;
      added_.add(std::move(token));
      added_.index(place);
    }
    prepare_added();
  }

  void append_part(std::string_view part, bool at_start, Scratch& scratch,
                   std::vector<std::int64_t>& out) const {
    if (pre_.bert && normalizer_ && normalizer_->bert() && !added_.has_normalized())
      return append_bert(part, scratch, out);
    if (normalizer_ && !(normalizer_->keeps_ascii() && is_ascii(part))) {
      scratch.normal.assign(part);
      normalizer_->apply(scratch.normal);
      part = scratch.normal;
    }
    const auto words = [&](std::string_view text, std::size_t at) {
      append_words(text, at_start && at == 0, scratch, out);
    };
    added_.split_normalized(part, words, [&](std::int32_t id) { out.push_back(id); });
  }

  void append_bert(std::string_view part, Scratch& scratch, std::vector<std::int64_t>& out) const {
    const auto make = [this](std::string_view word, std::vector<std::int32_t>& ids) {
      model_->tokenize(word, ids);
    };
    for_each_bert_word(
        part, *normalizer_->bert(), 0,
        [&](std::string_view word, std::int64_t) { scratch.cache.append(word, out, make); },
        [&](const std::vector<SourcedChar>& chars, std::size_t begin, std::size_t end) {
          scratch.wide.clear();
          for (auto i = begin; i < end; ++i) append_utf8(scratch.wide, chars[i].code);
          scratch.cache.append(scratch.wide, out, make);
        });
  }

  void append_words(std::string_view text, bool at_start, Scratch& scratch,
                    std::vector<std::int64_t>& out) const {
    auto& pieces = scratch.pieces;
    pieces.begin(text, at_start);
    for (const auto& step : pre_.steps) step->run(pieces);
    const auto make = [&](std::string_view word, std::vector<std::int32_t>& ids) {
      if (!pre_.spell_bytes) return model_->tokenize(word, ids);
      scratch.spelled.clear();
      for (const char c : word)
        scratch.spelled += byte_alphabet().spelled[static_cast<unsigned char>(c)];
      model_->tokenize(scratch.spelled, ids);
    };
    for (const auto range : pieces.ranges)
      scratch.cache.append(pieces.text.substr(range.begin, range.end - range.begin), out, make);
  }

  std::string text_;  // as it was read, for save
  std::unique_ptr<WordModel> model_;
  std::unique_ptr<Normalizer> normalizer_;
  PreTokenizers pre_;
  std::unique_ptr<Decoder> decoder_;
  mutable Pool<Scratch> pool_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_json_tokenizer(std::string text, const std::string& file,
                                               PretrainedConfig config) {
  return std::make_unique<JsonTokenizer>(std::move(text), file, std::move(config));
}

}  // namespace troupe::detail
