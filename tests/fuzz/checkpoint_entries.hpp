#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// What a fuzzer calls with any bytes: 0 when the parser took or refused them as it should, an abort otherwise.

namespace troupe::fuzz {

/// manifest.troupe: `data` as the file, and as the contents of a file whose mark, version and digest are right.
int fuzz_manifest(const std::uint8_t* data, std::size_t size);
/// rank_00000.troupe, in the same two ways.
int fuzz_rank_file(const std::uint8_t* data, std::size_t size);

/// Valid contents to begin from.
[[nodiscard]] std::vector<std::string> manifest_seeds();
[[nodiscard]] std::vector<std::string> rank_file_seeds();

}  // namespace troupe::fuzz
