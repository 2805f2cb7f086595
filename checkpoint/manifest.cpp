#include <troupe/manifest.hpp>

#include "archive_records.hpp"
#include "digest.hpp"
#include "layout.hpp"
#include "safetensors_layout.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

constexpr std::string_view kMark{"TROUPE\0M", 8};
constexpr std::uint32_t kVersion = 1;

class Checker {
 public:
  Checker(const Manifest& manifest, std::string_view what) : manifest_(manifest), what_(what) {}

  void check() const {
    if (manifest_.num_writers < 1 || manifest_.world_size < 0) refuse("has fewer than one writer");
    for (std::size_t i = 0; i < manifest_.files.size(); ++i) {
      check_file(manifest_.files[i]);
      if (i > 0 && !(manifest_.files[i - 1].name < manifest_.files[i].name)) refuse("does not name its files in order, or one twice");
    }
    for (const auto& tensor : manifest_.tensors) check_tensor(tensor);
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const { throw Failure{Errc::FileCorrupt, std::string(what_) + ": " + why}; }

  void check_file(const FileRecord& file) const {
    if (!detail::is_plain_name(file.name)) refuse("names the file '" + file.name + "', which is no plain path inside the checkpoint");
    if (file.name == manifest_name) refuse("names itself");
    std::uint64_t at = 0;
    for (const auto& segment : file.segments) {
      if (segment.begin != at || segment.length == 0 || segment.length > segment_bytes || segment.length > file.size - at) {
        refuse("has segments of " + file.name + " that do not tile it, at byte " + std::to_string(at));
      }
      at += segment.length;
    }
    if (at != file.size) refuse("has no segments of " + file.name + " after byte " + std::to_string(at));
    if (digest_of(file.segments) != file.digest) refuse("has a digest of " + file.name + " that is not that of its segments");
    at = 0;
    for (const auto& run : file.writers) {
      if (run.begin != at || run.end <= at || run.end > file.size) refuse("has writers of " + file.name + " that do not tile it");
      at = run.end;
    }
    if (at != file.size) refuse("has no writer of " + file.name + " after byte " + std::to_string(at));
  }

  void check_tensor(const StoredTensor& tensor) const {
    const auto where = "tensor '" + tensor.name + "' of '" + tensor.stem + "'";
    if (tensor.file >= manifest_.files.size()) refuse("puts " + where + " into a file that it does not name");
    const auto& file = manifest_.files[tensor.file];
    if (tensor.begin > file.size || tensor.bytes > file.size - tensor.begin) refuse("has " + where + " beyond the end of " + file.name);
    if (detail::tensor_bytes(tensor.dtype, tensor.shape) != tensor.bytes) {
      refuse("gives " + where + " " + std::to_string(tensor.bytes) + " bytes, which do not fit its dtype and shape");
    }
  }

  const Manifest& manifest_;
  std::string_view what_;
};

std::string hex(std::uint64_t digest) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(digest));
  return text;
}

nlohmann::ordered_json to_json(const FileRecord& file) {
  nlohmann::ordered_json json{{"name", file.name}, {"bytes", file.size}, {"xxh3_64_of_segments", hex(file.digest)}};
  auto& writers = json["writers"] = nlohmann::ordered_json::array();
  for (const auto& run : file.writers) writers.push_back({run.rank, run.begin, run.end});
  return json;
}

}  // namespace

template <class Archive>
void serialize(Archive& archive, Manifest& manifest) {
  archive(manifest.index, manifest.attempt, manifest.num_writers, manifest.world_size, manifest.step, manifest.epoch, manifest.strategy,
          manifest.metrics, manifest.files, manifest.tensors);
}

const FileRecord* Manifest::find_file(std::string_view name) const noexcept {
  const auto found = std::ranges::lower_bound(files, name, {}, &FileRecord::name);
  return found == files.end() || found->name != name ? nullptr : &*found;
}

const StoredTensor* Manifest::find_tensor(std::string_view stem, std::string_view name) const noexcept {
  const auto found = std::ranges::find_if(tensors, [&](const StoredTensor& tensor) { return tensor.name == name && tensor.stem == stem; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string to_bytes(const Manifest& manifest) { return detail::frame(kMark, kVersion, manifest); }

Manifest manifest_from_bytes(std::span<const std::byte> bytes, std::string_view what) {
  auto manifest = detail::unframe<Manifest>({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, kMark, kVersion, what);
  Checker{manifest, what}.check();
  return manifest;
}

std::string to_text(const Manifest& manifest) {
  auto files = nlohmann::ordered_json::array(), tensors = nlohmann::ordered_json::array();
  for (const auto& file : manifest.files) files.push_back(to_json(file));
  for (const auto& tensor : manifest.tensors) {
    tensors.push_back({{"stem", tensor.stem},
                       {"name", tensor.name},
                       {"dtype", name(tensor.dtype)},
                       {"shape", tensor.shape},
                       {"file", manifest.files[tensor.file].name},
                       {"begin", tensor.begin},
                       {"bytes", tensor.bytes}});
  }
  const nlohmann::ordered_json json{{"format", "troupe checkpoint"},
                                    {"version", kVersion},
                                    {"index", manifest.index},
                                    {"attempt", manifest.attempt},
                                    {"num_writers", manifest.num_writers},
                                    {"world_size", manifest.world_size},
                                    {"strategy", manifest.strategy},
                                    {"step", manifest.step},
                                    {"epoch", manifest.epoch},
                                    {"metrics", to_json(manifest.metrics)},
                                    {"files", std::move(files)},
                                    {"tensors", std::move(tensors)}};
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace troupe
