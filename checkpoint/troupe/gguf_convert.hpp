#pragma once

#include <troupe/gguf.hpp>
#include <troupe/safetensors.hpp>

#include <functional>

namespace troupe {

struct GgufConversion {
  SafetensorsDtype dtype = SafetensorsDtype::BF16;     ///< of the weights written: BF16, F16 or F32
  std::uint64_t max_shard_bytes = 5'000'000'000;       ///< larger models are written as shards and an index
  bool tokenizer = true;                               ///< write the tokenizer's files too
  /// Bytes of weights written so far, of all; called after each tensor.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress;
};

struct GgufConverted {
  std::uint64_t num_tensors = 0;
  std::uint64_t num_params = 0;
  std::vector<std::string> files;  ///< names in the directory, sorted
};

/// Writes the Llama model in `file` as a Hugging Face directory: config.json, generation_config.json, safetensors (one file
/// or shards and index), and tokenizer files: tokenizer.json, vocab.json and merges.txt of a byte-level BPE, tokenizer.model
/// of a SentencePiece one. The rotary order of q and k, which llama.cpp changes, is changed back. The whole file is checked
/// before anything is written; no more than one tensor is in memory. `directory` must not exist; it appears by a rename.
/// Throws Failure{FileCorrupt, Unsupported, AlreadyExists, StorageUnavailable} naming file and key or tensor.
GgufConverted convert_gguf(const std::filesystem::path& file, const std::filesystem::path& directory, const GgufConversion& options = {});

}  // namespace troupe
