#include <troupe/errors.hpp>
#include <troupe/tokenizer.hpp>

#include "json_section.hpp"
#include "json_tokenizer.hpp"
#include "pretrained_config.hpp"
#include "sentencepiece_tokenizer.hpp"

namespace troupe {

namespace fs = std::filesystem;

std::unique_ptr<Tokenizer> load_tokenizer(const fs::path& directory) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() +
                                          ": is no directory; a tokenizer is a directory with "
                                          "tokenizer.json, tokenizer.model or vocab.txt"};
  auto config = detail::read_pretrained_config(directory);
  const auto json = directory / "tokenizer.json", model = directory / "tokenizer.model",
             words = directory / "vocab.txt";
  if (fs::exists(json))
    return detail::make_json_tokenizer(detail::read_tokenizer_file(json), json.string(),
                                       std::move(config));
  if (fs::exists(model))
    return detail::make_sentencepiece_tokenizer(detail::read_tokenizer_file(model), model.string(),
                                                std::move(config));
  auto& tokens = config.tokens;
  if (fs::exists(words)) {
    // The roles that BertTokenizer has without being told.
    for (auto [role, text] : {std::pair{&tokens.unk, "[UNK]"},
                              {&tokens.sep, "[SEP]"},
                              {&tokens.pad, "[PAD]"},
                              {&tokens.cls, "[CLS]"},
                              {&tokens.mask, "[MASK]"}}) {
      if (!*role) *role = text;
    }
    auto text = detail::json_of_vocab_txt(words, config);
    return detail::make_json_tokenizer(std::move(text), words.string(), std::move(config));
  }
  const auto vocab = directory / "vocab.json", merges = directory / "merges.txt";
  if (fs::exists(vocab) && fs::exists(merges)) {
    const bool roberta = config.tokenizer_class.starts_with("Roberta");
    for (auto [role, text] : {std::pair{&tokens.bos, roberta ? "<s>" : "<|endoftext|>"},
                              {&tokens.eos, roberta ? "</s>" : "<|endoftext|>"},
                              {&tokens.unk, roberta ? "<unk>" : "<|endoftext|>"}}) {
      if (!*role) *role = text;
    }
    for (auto [role, text] : {std::pair{&tokens.sep, "</s>"},
                              {&tokens.cls, "<s>"},
                              {&tokens.pad, "<pad>"},
                              {&tokens.mask, "<mask>"}}) {
      if (roberta && !*role) *role = text;
    }
    auto text = detail::json_of_vocab_and_merges(vocab, merges, config);
    return detail::make_json_tokenizer(std::move(text), vocab.string(), std::move(config));
  }
  throw Failure{Errc::FileNotFound,
                directory.string() +
                    ": has no tokenizer: none of tokenizer.json, tokenizer.model, vocab.txt, or "
                    "vocab.json with merges.txt"};
}

}  // namespace troupe
