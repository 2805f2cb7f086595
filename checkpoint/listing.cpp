#include "listing.hpp"

#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <span>

namespace troupe {

const char* listing_name() noexcept { return manifest_name; }

CheckpointListing parse_listing(const std::string& bytes, const std::string& what) {
  auto manifest = manifest_from_bytes(std::as_bytes(std::span{bytes}), what);
  CheckpointListing made{manifest.index, std::move(manifest.metrics), {}};
  for (const auto& file : manifest.files) made.files[file.name] = file.size;
  return made;
}

void verify_directory(const std::filesystem::path& directory) {
  const CheckpointReader reader{directory};
  if (!reader.has_manifest()) throw Failure{Errc::FileCorrupt, directory.string() + " has no " + manifest_name};
  reader.verify();
}

}  // namespace troupe
