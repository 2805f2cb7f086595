#pragma once

#include <troupe/file_system.hpp>
#include <troupe/manifest.hpp>

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::detail {

/// Where each file of a checkpoint to be lies, by its name in it, and which rank handed it in.
struct SourceFile {
  std::filesystem::path path;
  int rank = 0;
};
using SourceFiles = std::map<std::string, SourceFile>;

/// Fills files, tensors and what rank 0 recorded of the run. Checks that the parts belong together and that their ranges tile every shared
/// file; digests what no rank recorded. `what` begins every message. Throws Failure{InvalidArgument} naming ranks and bytes, and what the
/// file system throws.
void assemble(FileSystem& file_system, const SourceFiles& files, const std::string& what, Manifest& manifest);

/// The segments of a file that consists of `bytes`.
[[nodiscard]] std::vector<Segment> segments_of(std::string_view bytes);

}  // namespace troupe::detail
