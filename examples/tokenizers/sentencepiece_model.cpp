#include "sentencepiece_model.hpp"

#include <dlfcn.h>
#include <sentencepiece_processor.h>

#include <cstring>
#include <exception>
#include <troupe/errors.hpp>

#include "protobuf_reader.hpp"

// libsentencepiece and LibTorch's libc10 both export FLAGS_minloglevel: 32 bytes that
// sentencepiece's start-up code fills, and an int. Whichever library comes first would lend its
// variable to both, and sentencepiece would write over what follows the int. One that belongs to
// the program comes before either, and is large enough. libc10 only takes its address, and only to
// parse command lines (docs/decisions/0024-tokenizers.md).
extern "C" {
alignas(16) char FLAGS_minloglevel[64];  // NOLINT
}

namespace troupe::detail {
namespace {

constexpr std::size_t kMaxPieces = 10'000'000;

[[noreturn]] void corrupt(const std::string& file, const std::string& text) {
  throw Failure{Errc::FileCorrupt, file + ": " + text};
}

void check_flags_variable(const std::string& file) {
  const auto* const bound = dlsym(RTLD_DEFAULT, "FLAGS_minloglevel");
  if (bound == nullptr || bound == static_cast<const void*>(FLAGS_minloglevel)) return;
  throw Failure{Errc::Unsupported,
                file +
                    ": SentencePiece models need Troupe linked into the program itself: the "
                    "variable FLAGS_minloglevel "
                    "of another library has taken the place of Troupe's (docs/tokenizers.md)"};
}

void load(sentencepiece::SentencePieceProcessor& processor, const std::string& bytes,
          const std::string& file) {
  std::string why;
  try {
    const auto status = processor.LoadFromSerializedProto(bytes);
    if (status.ok()) return;
    why = status.error_message();
  } catch (const std::exception& error) {  // of a piece without text, for one
    why = error.what();
  }
  corrupt(file, "the sentencepiece library does not take it: " + why);
}

}  // namespace

struct SentencePieceModel::Library {
  sentencepiece::SentencePieceProcessor with_prefix, without_prefix;
};

SentencePieceModel::SentencePieceModel(const std::string& bytes, const std::string& file)
    : library_(std::make_unique<Library>()) {
  check_flags_variable(file);
  read(bytes, file);
  load(library_->with_prefix, bytes, file);
  // A later field of the same number overrides: normalizer_spec {add_dummy_prefix: false}.
  if (adds_prefix_)
    load(library_->without_prefix, bytes + std::string("\x1A\x02\x18\x00", 4), file);
  if (static_cast<std::size_t>(library_->with_prefix.GetPieceSize()) != pieces_.size())
    throw Failure{Errc::Internal,
                  file + ": the sentencepiece library counts another number of pieces"};
}

SentencePieceModel::~SentencePieceModel() = default;
SentencePieceModel::SentencePieceModel(SentencePieceModel&&) noexcept = default;
SentencePieceModel& SentencePieceModel::operator=(SentencePieceModel&&) noexcept = default;

void SentencePieceModel::encode(std::string_view text, bool prefix,
                                std::vector<std::int64_t>& out) const {
  const auto& processor =
      prefix || !adds_prefix_ ? library_->with_prefix : library_->without_prefix;
  thread_local std::vector<int> ids;
  const auto status = processor.Encode(text, &ids);
  if (!status.ok())
    throw Failure{
        Errc::DataMalformed,
        std::string("the sentencepiece library cannot encode a text: ") + status.error_message()};
  out.insert(out.end(), ids.begin(), ids.end());
}

// Field numbers are those of sentencepiece_model.proto.
void SentencePieceModel::read(std::string_view bytes, const std::string& file) {
  ProtobufReader model{bytes};
  while (const auto field = model.next()) {
    if (field->number == 1) {
      if (pieces_.size() >= kMaxPieces) corrupt(file, "has over 10 million pieces");
      Piece piece;
      ProtobufReader inner{field->bytes};
      while (const auto part = inner.next()) {
        if (part->number == 1) piece.text = std::string(part->bytes);
        if (part->number == 3 && (part->value < 1 || part->value > 6))
          corrupt(file, "piece " + std::to_string(pieces_.size()) + " has an unknown type");
        if (part->number == 3) piece.type = static_cast<Type>(part->value);
      }
      if (inner.broken() || piece.text.empty())
        corrupt(file, "piece " + std::to_string(pieces_.size()) + " is broken or empty");
      pieces_.push_back(std::move(piece));
    } else if (field->number == 2) {
      read_trainer(field->bytes, file);
    } else if (field->number == 3) {
      read_normalizer(field->bytes, file);
    } else if (field->number == 5) {
      ProtobufReader denormalizer{field->bytes};
      while (const auto part = denormalizer.next()) {
        if (part->number == 2 && !part->bytes.empty())
          throw Failure{Errc::Unsupported,
                        file + ": denormalizer_spec.precompiled_charsmap is not supported"};
      }
    }
  }
  if (model.broken()) corrupt(file, "is no SentencePiece model, or cut off");
  if (pieces_.empty()) corrupt(file, "holds no pieces: is it a SentencePiece model?");
  if (algorithm_ != 1 && algorithm_ != 2)
    throw Failure{Errc::Unsupported, file + ": trainer_spec.model_type is neither unigram nor BPE"};
  for (const auto id : {unk_, bos_, eos_, pad_}) {
    if (id >= static_cast<std::int64_t>(pieces_.size()))
      corrupt(file, "trainer_spec names the id " + std::to_string(id) + ", but there are " +
                        std::to_string(pieces_.size()) + " pieces");
  }
}

void SentencePieceModel::read_trainer(std::string_view bytes, const std::string& file) {
  ProtobufReader trainer{bytes};
  const auto id = [](std::uint64_t value) {
    return static_cast<std::int64_t>(static_cast<std::int32_t>(value));
  };
  while (const auto field = trainer.next()) {
    switch (field->number) {
      case 3:
        algorithm_ = id(field->value);
        break;
      case 24:
        if (field->value != 0)
          throw Failure{Errc::Unsupported,
                        file + ": trainer_spec.treat_whitespace_as_suffix is not supported"};
        break;
      case 40:
        unk_ = id(field->value);
        break;
      case 41:
        bos_ = id(field->value);
        break;
      case 42:
        eos_ = id(field->value);
        break;
      case 43:
        pad_ = id(field->value);
        break;
      default:
        break;
    }
  }
  if (trainer.broken()) corrupt(file, "trainer_spec is broken");
}

void SentencePieceModel::read_normalizer(std::string_view bytes, const std::string& file) {
  ProtobufReader normalizer{bytes};
  while (const auto field = normalizer.next()) {
    if (field->number == 2 && !is_sound_charsmap(field->bytes))
      corrupt(file, "normalizer_spec.precompiled_charsmap is broken");
    if (field->number == 3) adds_prefix_ = field->value != 0;
    if (field->number == 5 && field->value == 0)
      throw Failure{Errc::Unsupported,
                    file + ": normalizer_spec.escape_whitespaces false is not supported"};
  }
  if (normalizer.broken()) corrupt(file, "normalizer_spec is broken");
}

bool is_sound_charsmap(std::string_view charsmap) {
  if (charsmap.empty()) return true;
  std::uint32_t trie_bytes = 0;
  if (charsmap.size() <= sizeof trie_bytes) return false;
  std::memcpy(&trie_bytes, charsmap.data(), sizeof trie_bytes);
  const auto strings_at = sizeof trie_bytes + std::size_t{trie_bytes};
  if (trie_bytes % 1024 != 0 || trie_bytes == 0 || strings_at >= charsmap.size() ||
      charsmap.back() != '\0')
    return false;
  std::vector<std::uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), charsmap.data() + sizeof trie_bytes, trie_bytes);
  const auto strings = charsmap.size() - strings_at;
  // Units as darts-clone lays them out: where the children begin, whether there is a value, the
  // label.
  const auto children_of = [&](std::size_t at) {
    return at ^ (std::size_t{units[at] >> 10} << ((units[at] & 0x200U) >> 6));
  };
  std::vector<bool> seen(units.size());
  std::vector<std::size_t> nodes{0};
  while (!nodes.empty()) {
    const auto node = nodes.back();
    nodes.pop_back();
    if (seen[node]) continue;
    seen[node] = true;
    const auto children = children_of(node);
    if ((children | 0xFFU) >= units.size()) return false;
    if ((units[node] & 0x100U) && (units[children] & 0x7FFFFFFFU) >= strings) return false;
    for (std::size_t label = 1; label < 256; ++label) {
      const auto child = children ^ label;
      if ((units[child] & 0x800000FFU) == label) nodes.push_back(child);
    }
  }
  return true;
}

}  // namespace troupe::detail
