#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

/// What is cut when a text, or a pair, has more ids than `max_length`; as in transformers.
enum class Truncation : std::uint8_t { None, LongestFirst, OnlyFirst, OnlySecond };

struct EncodeOptions {
  bool add_special_tokens = true;  ///< what the post-processor adds: bos, [CLS], [SEP] …
  std::size_t max_length = 0;      ///< special tokens included; 0: no limit
  Truncation truncation = Truncation::LongestFirst;
  bool type_ids = false;  ///< fill TokenBatch::type_ids
};

/// Ids of many texts, end to end: two or three allocations however many texts there are.
struct TokenBatch {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> type_ids;      ///< as long as `ids`, or empty when not asked for
  std::vector<std::size_t> offsets = {0};  ///< text i has ids[offsets[i]] up to ids[offsets[i + 1]]

  [[nodiscard]] std::size_t size() const noexcept { return offsets.size() - 1; }
  [[nodiscard]] std::span<const std::int64_t> operator[](std::size_t text) const {
    return std::span{ids}.subspan(offsets[text], offsets[text + 1] - offsets[text]);
  }
};

/// Special tokens by their roles, as transformers names them (bos_token …).
struct SpecialTokens {
  std::optional<std::string> bos = {}, eos = {}, unk = {}, sep = {}, pad = {}, cls = {}, mask = {};
  std::vector<std::string> additional = {};  ///< without a role, such as "<START_Q>"
};

/// The ids of the roles that a tokenizer has.
struct SpecialIds {
  std::optional<std::int64_t> bos, eos, unk, sep, pad, cls, mask;
};

/// Text to token ids and back, with the ids of the same files in transformers.
///
/// Text is UTF-8; each longest run of bytes that is not counts as one U+FFFD, as Python's
/// errors="replace" makes it. Threads: const members may be called from any number of threads;
/// add_special_tokens has no other call beside it. Errors: Failure, which names file and key where
/// there is one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of one text. Throws Failure{InvalidArgument} when `max_length` cannot hold the special
  /// tokens, or the side that `truncation` names is too short to be cut as far as needed.
  [[nodiscard]] std::vector<std::int64_t> encode(std::string_view text,
                                                 const EncodeOptions& options = {}) const;
  /// The same for a pair. An empty second text counts as a text.
  [[nodiscard]] std::vector<std::int64_t> encode(std::string_view first, std::string_view second,
                                                 const EncodeOptions& options = {}) const;
  [[nodiscard]] TokenBatch encode_batch(std::span<const std::string_view> texts,
                                        const EncodeOptions& options = {}) const;
  [[nodiscard]] TokenBatch encode_batch(std::span<const std::string> texts,
                                        const EncodeOptions& options = {}) const;
  /// Pairs; throws Failure{InvalidArgument} when the two lists differ in length.
  [[nodiscard]] TokenBatch encode_batch(std::span<const std::string_view> firsts,
                                        std::span<const std::string_view> seconds,
                                        const EncodeOptions& options = {}) const;

  /// Text of `ids`, UTF-8 whatever they are. Ids out of range are left out. For one id after
  /// another: StreamDecoder.
  [[nodiscard]] virtual std::string decode(std::span<const std::int64_t> ids,
                                           bool skip_special_tokens = true) const = 0;

  [[nodiscard]] virtual std::optional<std::int64_t> token_to_id(std::string_view token) const = 0;
  /// The token as its file spells it. Throws Failure{InvalidArgument} for an id that is none.
  [[nodiscard]] virtual std::string id_to_token(std::int64_t id) const = 0;
  /// Largest id + 1, added tokens included: rows that an embedding must have at least.
  [[nodiscard]] virtual std::size_t vocab_size() const noexcept = 0;

  [[nodiscard]] virtual const SpecialTokens& special_tokens() const noexcept = 0;
  [[nodiscard]] SpecialIds special_ids() const;
  /// True for what `decode` leaves out with `skip_special_tokens`.
  [[nodiscard]] virtual bool is_special(std::int64_t id) const noexcept = 0;

  /// Gives roles to tokens and adds those that are not there yet, ids appended; returns how many
  /// are new. An embedding with fewer than vocab_size() rows must then be resized. Tokens are taken
  /// whole out of texts from then on.
  virtual std::size_t add_special_tokens(const SpecialTokens& tokens) = 0;

  /// Writes what load_tokenizer and transformers read again, added tokens included.
  virtual void save(const std::filesystem::path& directory) const = 0;

  /// The Jinja text that came with the files; empty when none did. See recognize_chat_format.
  [[nodiscard]] virtual const std::string& chat_template() const noexcept = 0;
  /// Longest text the model was made for (tokenizer_config.json); nothing when not told.
  [[nodiscard]] virtual std::optional<std::size_t> model_max_length() const noexcept = 0;

 protected:
  /// Appends the ids of one text or pair to `out`, and closes it with an offset.
  virtual void append(std::string_view first, const std::string_view* second,
                      const EncodeOptions& options, TokenBatch& out) const = 0;
};

/// Reads the tokenizer of a model directory, choosing by the files there, the first of:
/// tokenizer.json (WordPiece or BPE), tokenizer.model (SentencePiece), vocab.txt (BERT's
/// WordPiece), vocab.json with merges.txt (GPT-2's BPE); with tokenizer_config.json,
/// special_tokens_map.json, added_tokens.json and chat_template.jinja where they are. Throws
/// Failure{FileNotFound, FileCorrupt, Unsupported} naming file and key: what is not supported is
/// refused, never done in another way.
[[nodiscard]] std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

}  // namespace troupe
