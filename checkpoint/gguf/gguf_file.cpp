#include <troupe/errors.hpp>
#include <troupe/gguf.hpp>

#include "../mapped_file.hpp"

namespace troupe {

GgufFile::GgufFile(const std::filesystem::path& file) : path_(file) {
  auto mapped = detail::map_private(file);
  bytes_ = mapped.bytes;
  mapping_ = std::move(mapped.keep);
  header_ = parse_gguf(bytes_, file.string());
}

void GgufFile::refuse(const std::string& key, const std::string& text) const {
  throw Failure{Errc::FileCorrupt, path_.string() + ": metadata '" + key + "' " + text};
}

}  // namespace troupe
