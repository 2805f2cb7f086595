#include "manifest.hpp"

#include "files.hpp"

#include <nlohmann/json.hpp>

namespace troupe {

std::string to_text(const Manifest& manifest) {
  auto files = nlohmann::ordered_json::array();
  for (const auto& [name, bytes] : manifest.files) files.push_back({{"name", name}, {"bytes", bytes}});
  const nlohmann::ordered_json json{{"format", "troupe checkpoint"},
                                    {"version", 1},
                                    {"index", manifest.index},
                                    {"num_writers", manifest.num_writers},
                                    {"metrics", to_json(manifest.metrics)},
                                    {"files", files}};
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

Manifest read_manifest(const std::filesystem::path& directory) {
  const auto damaged = [&](const std::string& why) {
    return Failure{Errc::FileCorrupt, "checkpoint " + directory.string() + " is damaged: " + why};
  };
  Manifest manifest;
  try {
    const auto json = nlohmann::ordered_json::parse(files::read_all(directory / manifest_name));
    if (json.at("version").get<int>() != 1) throw damaged("its manifest is of version " + json.at("version").dump());
    manifest.index = json.at("index").get<std::uint64_t>();
    manifest.num_writers = json.at("num_writers").get<int>();
    manifest.metrics = metrics_from_json(json.at("metrics"));
    for (const auto& file : json.at("files")) {
      manifest.files[file.at("name").get<std::string>()] = file.at("bytes").get<std::uintmax_t>();
    }
  } catch (const nlohmann::json::exception& error) {
    throw damaged(error.what());
  } catch (const Failure& failure) {
    if (failure.code() != Errc::StorageUnavailable) throw;
    throw damaged(failure.what());
  }
  for (const auto& [name, bytes] : manifest.files) {
    std::error_code error;
    const auto found = std::filesystem::file_size(directory / name, error);
    if (error) throw damaged(name + " is missing");
    if (found != bytes) {
      throw damaged(name + " has " + std::to_string(found) + " of " + std::to_string(bytes) + " bytes");
    }
  }
  return manifest;
}

}  // namespace troupe
