#include "listing.hpp"

#include "manifest.hpp"

#include <nlohmann/json.hpp>

namespace troupe {

const char* listing_name() noexcept { return manifest_name; }

CheckpointListing parse_listing(const std::string& bytes, const std::string& what) {
  CheckpointListing made;
  try {
    const auto json = nlohmann::ordered_json::parse(bytes);
    made.index = json.at("index").get<std::uint64_t>();
    made.metrics = metrics_from_json(json.at("metrics"));
    for (const auto& file : json.at("files")) made.files[file.at("name").get<std::string>()] = file.at("bytes").get<std::uint64_t>();
  } catch (const nlohmann::json::exception& error) {
    throw Failure{Errc::FileCorrupt, what + " is damaged: " + error.what()};
  }
  for (const auto& [name, size] : made.files) {
    const std::filesystem::path path{name};
    if (path.is_absolute() || path.lexically_normal() != path || *path.begin() == "..") throw Failure{Errc::FileCorrupt, what + " names the file '" + name + "'"};
  }
  return made;
}

void verify_directory(const std::filesystem::path& directory) { (void)read_manifest(directory); }

}  // namespace troupe
