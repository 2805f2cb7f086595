#include "sentencepiece_tokenizer.hpp"

#include <troupe/errors.hpp>

#include "../text/vocabulary.hpp"
#include "decoders.hpp"
#include "json_section.hpp"
#include "pretrained_tokenizer.hpp"
#include "sentencepiece_model.hpp"
#include "unicode_text.hpp"

namespace troupe::detail {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a space in pieces

class SentencePieceTokenizer final : public PretrainedTokenizer {
 public:
  SentencePieceTokenizer(std::string bytes, const std::string& file, PretrainedConfig config)
      : PretrainedTokenizer(std::move(config)), bytes_(std::move(bytes)), model_(bytes_, file) {
    check_class(file);
    for (const auto& piece : model_.pieces()) vocabulary_.add(piece.text);
    for (const auto& [role, id] : {std::pair{&config_.tokens.bos, model_.bos()},
                                   {&config_.tokens.eos, model_.eos()},
                                   {&config_.tokens.unk, model_.unk()},
                                   {&config_.tokens.pad, model_.pad()}}) {
      if (!*role && id >= 0) *role = model_.pieces()[static_cast<std::size_t>(id)].text;
    }
    add_configured_tokens();
    if (!config_.add_bos) config_.add_bos = true;  // as LlamaTokenizer
    apply_bos_eos(false);
  }

  [[nodiscard]] std::string decode(std::span<const std::int64_t> ids,
                                   bool skip_special_tokens) const override {
    std::string out, bytes;
    const auto flush = [&] {
      append_fallback_bytes(out, bytes);
      bytes.clear();
    };
    for (const auto id : ids) {
      const auto* const added = added_.find_id(id);
      if (added && added->special && skip_special_tokens) continue;
      if (!added && (id < 0 || static_cast<std::size_t>(id) >= model_.pieces().size())) continue;
      const auto& text =
          added ? added->content : model_.pieces()[static_cast<std::size_t>(id)].text;
      const bool is_byte = !added && model_.pieces()[static_cast<std::size_t>(id)].type ==
                                         SentencePieceModel::Type::Byte;
      if (const int byte = is_byte ? byte_of_token(text) : -1; byte >= 0) {
        bytes += static_cast<char>(byte);
        continue;
      }
      flush();
      append_piece(out, text);
    }
    flush();
    if (model_.adds_prefix() && out.starts_with(' ')) out.erase(0, 1);
    return out;
  }

  void save(const std::filesystem::path& directory) const override {
    auto config = config_;
    config.json["add_bos_token"] = config_.add_bos.value_or(true);
    config.json["add_eos_token"] = config_.add_eos.value_or(false);
    config.json["legacy"] = config_.legacy.value_or(false);
    if (!config.json.contains("tokenizer_class")) config.json["tokenizer_class"] = "LlamaTokenizer";
    save_pretrained_config(config, added_.by_id(), directory);
    write_tokenizer_file(directory / "tokenizer.model", bytes_);
  }

 protected:
  void append_ids(std::string_view text, std::vector<std::int64_t>& out) const override {
    std::string storage;
    const bool legacy = config_.legacy.value_or(false);
    added_.split_raw(
        valid_utf8(text, storage),
        [&](std::string_view part, std::size_t at) { model_.encode(part, legacy || at == 0, out); },
        [&](std::int32_t id) { out.push_back(id); });
  }
  [[nodiscard]] std::optional<std::int64_t> model_id(std::string_view token) const override {
    const auto id = vocabulary_.find(token);
    return id == Vocabulary::kNone ? std::nullopt : std::optional<std::int64_t>{id};
  }
  [[nodiscard]] std::optional<std::string> model_token(std::int64_t id) const override {
    if (!vocabulary_.has(id)) return std::nullopt;
    return std::string(vocabulary_.token(static_cast<std::int32_t>(id)));
  }
  [[nodiscard]] std::size_t model_size() const noexcept override { return vocabulary_.size(); }
  [[nodiscard]] std::size_t model_count() const noexcept override { return vocabulary_.count(); }
  void prepare_added() override {
    // Nothing is normalised before added tokens are looked for: one kind.
    std::vector<AddedToken> normalized;
    for (const auto& [id, token] : added_.by_id()) {
      if (token.normalized) normalized.push_back(token);
    }
    for (auto& token : normalized) {
      token.normalized = false;
      added_.add(std::move(token));
    }
    added_.prepare(nullptr);
  }

 private:
  void check_class(const std::string& file) const {
    const auto& name = config_.tokenizer_class;
    if (name.empty() || name.starts_with("LlamaTokenizer") || name == "PreTrainedTokenizerFast" ||
        name == "TokenizersBackend")
      return;
    throw Failure{Errc::Unsupported, config_.file + ": tokenizer_class '" + name + "' with " +
                                         file +
                                         " is not supported (LlamaTokenizer is); "
                                         "save it with transformers as tokenizer.json"};
  }

  static void append_piece(std::string& out, std::string_view text) {
    for (std::size_t at = 0;;) {
      const auto found = text.find(kSpace, at);
      out += text.substr(at, found - at);
      if (found == std::string_view::npos) return;
      out += ' ';
      at = found + kSpace.size();
    }
  }

  std::string bytes_;  // for save
  SentencePieceModel model_;
  Vocabulary vocabulary_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string bytes, const std::string& file,
                                                        PretrainedConfig config) {
  return std::make_unique<SentencePieceTokenizer>(std::move(bytes), file, std::move(config));
}

}  // namespace troupe::detail
