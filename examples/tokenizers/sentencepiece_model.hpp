#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// A tokenizer.model: its tables, read here with bounds, and the sentencepiece library, which
/// encodes.
///
/// Threads: const members, any number at once.
class SentencePieceModel {
 public:
  enum class Type : std::uint8_t { Normal = 1, Unknown, Control, UserDefined, Unused, Byte };
  struct Piece {
    std::string text;
    Type type = Type::Normal;
  };

  /// Throws Failure{FileCorrupt, Unsupported} naming `file` and what is wrong.
  SentencePieceModel(const std::string& bytes, const std::string& file);
  ~SentencePieceModel();
  SentencePieceModel(SentencePieceModel&&) noexcept;
  SentencePieceModel& operator=(SentencePieceModel&&) noexcept;

  /// Appends the ids of `text`. @param prefix with the space before the first word that the model
  /// asks for, if it does.
  void encode(std::string_view text, bool prefix, std::vector<std::int64_t>& out) const;

  [[nodiscard]] const std::vector<Piece>& pieces() const { return pieces_; }
  [[nodiscard]] bool adds_prefix() const { return adds_prefix_; }
  /// Ids of the roles; -1: none.
  [[nodiscard]] std::int64_t unk() const { return unk_; }
  [[nodiscard]] std::int64_t bos() const { return bos_; }
  [[nodiscard]] std::int64_t eos() const { return eos_; }
  [[nodiscard]] std::int64_t pad() const { return pad_; }

 private:
  void read(std::string_view bytes, const std::string& file);
  void read_trainer(std::string_view bytes, const std::string& file);
  void read_normalizer(std::string_view bytes, const std::string& file);

  struct Library;
  std::unique_ptr<Library> library_;
  std::vector<Piece> pieces_;
  std::int64_t unk_ = 0, bos_ = 1, eos_ = 2, pad_ = -1;
  std::int64_t algorithm_ = 1;
  bool adds_prefix_ = true;
};

/// Whether the double array in a model's precompiled_charsmap stays inside itself, whatever text is
/// looked up: the library does not check that. Empty: there is none, which is fine.
[[nodiscard]] bool is_sound_charsmap(std::string_view charsmap);

}  // namespace troupe::detail
