#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::fuzz {

// One function a parser of files that strangers may write. Each reads `data` as that format and
// uses all of the result. A Failure is fine; another exception, a crash, a sanitizer's report, a
// hang or much memory is a finding. All return 0, as libFuzzer wants.

int safetensors(const std::uint8_t* data, std::size_t size);
/// A file of torch.save: zip and pickle. Checksums are not verified, so that changed bytes reach
/// the interpreter.
int torch_file(const std::uint8_t* data, std::size_t size);
/// The pickle alone, every class of a package "x" allowed as data.
int pickle(const std::uint8_t* data, std::size_t size);
int dcp_metadata(const std::uint8_t* data, std::size_t size);
/// llama.cpp's format: header, tensor list, and the numbers of every tensor.
int gguf(const std::uint8_t* data, std::size_t size);
int shard_index(const std::uint8_t* data, std::size_t size);
/// manifest.troupe: `data` as the file, and as the contents of a file whose mark, version and digest
/// are right. What is taken must be written again as it was.
int manifest(const std::uint8_t* data, std::size_t size);
/// rank_00000.troupe, in the same two ways.
int rank_file(const std::uint8_t* data, std::size_t size);

/// Tokenizers: a tokenizer.json and a SentencePiece model, loaded and used (tokenizer_entries.cpp; not among `targets`).
int tokenizer_json(const std::uint8_t* data, std::size_t size);
int tokenizer_model(const std::uint8_t* data, std::size_t size);

/// What comes over a cluster's link: frames in pieces, and the messages of strangers among them (link_entries.cpp; not among `targets`).
int link_frames(const std::uint8_t* data, std::size_t size);

/// Valid contents to begin from, for three of the above.
[[nodiscard]] std::vector<std::string> manifest_seeds();
[[nodiscard]] std::vector<std::string> rank_file_seeds();
[[nodiscard]] std::vector<std::string> link_seeds();

struct Target {
  std::string_view name;
  int (*run)(const std::uint8_t* data, std::size_t size);
};

[[nodiscard]] const std::vector<Target>& targets();

}  // namespace troupe::fuzz
