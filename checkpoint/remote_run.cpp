#include "files.hpp"
#include "listing.hpp"

#include <troupe/remote_run.hpp>

#include <algorithm>
#include <map>

namespace troupe {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t longest_text = std::uint64_t{1} << 30;

std::string get_all(ObjectStore& store, const std::string& key, std::uint64_t bytes) {
  if (bytes > longest_text) throw StoreFailure{StoreError::Refused, store.url() + "/" + key + " has " + std::to_string(bytes) + " bytes, more than it can have"};
  std::string text(bytes, '\0');
  store.get(key, 0, std::as_writable_bytes(std::span{text}));
  return text;
}

std::string size_note(std::uint64_t found, std::uint64_t wanted) {
  return std::to_string(found) + " of " + std::to_string(wanted) + " bytes";
}

}  // namespace

std::string RemoteRun::read_file(const std::string& name) {
  const auto info = store_.head(key(name));
  return info ? get_all(store_, info->key, info->bytes) : "";
}

std::string RemoteRun::manifest_of(const std::string& name) { return read_file(name + "/" + listing_name()); }

RemoteRun::Contents RemoteRun::read() {
  Contents contents;
  std::map<std::string, std::map<std::string, std::uint64_t>> found;  // by checkpoint, by file
  for (const auto& object : store_.list(prefix_)) {
    const auto rest = object.key.substr(prefix_.size() + 1);
    const auto slash = rest.find('/');
    if (rest == "reports.jsonl") contents.has_reports = true;
    if (slash != std::string::npos && rest.starts_with("checkpoint_")) found[rest.substr(0, slash)][rest.substr(slash + 1)] = object.bytes;
  }
  for (auto& [name, objects] : found) {
    const auto manifest = objects.find(listing_name());
    bool whole = manifest != objects.end();
    if (whole) {
      const auto place = key(name + "/" + listing_name());
      try {
        auto listing = parse_listing(get_all(store_, place, manifest->second), store_.url() + "/" + place);
        whole = std::all_of(listing.files.begin(), listing.files.end(), [&](const auto& file) {
          const auto object = objects.find(file.first);
          return object != objects.end() && object->second == file.second;
        });
        if (whole) {
          contents.checkpoints.push_back({Checkpoint{fs::path{url()} / name}, std::move(listing.metrics), listing.index});
          for (const auto& [file, bytes] : objects) contents.bytes[listing.index] += bytes;
        }
      } catch (const StoreFailure&) {
        throw;
      } catch (const Failure&) {
        whole = false;
      }
    }
    if (!whole) contents.leftovers.push_back(name);
  }
  std::sort(contents.checkpoints.begin(), contents.checkpoints.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return contents;
}

void RemoteRun::check_sizes(const std::string& name, const fs::path& directory) {
  const auto listing = parse_listing(files::read_all(directory / listing_name()), (directory / listing_name()).string());
  std::map<std::string, std::uint64_t> found;
  for (const auto& object : store_.list(key(name))) found[object.key.substr(key(name).size() + 1)] = object.bytes;
  for (const auto& [file, bytes] : listing.files) {
    const auto object = found.find(file);
    if (object != found.end() && object->second == bytes) continue;
    throw StoreFailure{StoreError::Truncated, url() + "/" + name + "/" + file + " has " + size_note(object == found.end() ? 0 : object->second, bytes) + " after its upload"};
  }
  for (const auto& [file, bytes] : found) {
    if (!listing.files.contains(file)) store_.remove(key(name + "/" + file));  // left by an upload of another attempt
  }
}

void RemoteRun::upload_checkpoint(const fs::path& directory) {
  const auto name = directory.filename().string();
  const auto manifest = directory / listing_name();
  const auto text = files::read_all(manifest);
  const auto listing = parse_listing(text, manifest.string());
  if (const auto there = manifest_of(name); !there.empty()) {
    if (there == text) {
      const auto contents = read().checkpoints;
      if (std::any_of(contents.begin(), contents.end(), [&](const auto& record) { return record.index == listing.index; })) return;
    }
    store_.remove(key(name + "/" + listing_name()));  // while its files are replaced, it is no checkpoint
  }
  for (const auto& [file, bytes] : listing.files) {
    std::error_code error;
    const auto size = fs::file_size(directory / file, error);
    if (error || size != bytes) {
      throw Failure{Errc::FileCorrupt, (directory / file).string() + " has " + size_note(error ? 0 : size, bytes) + "; the checkpoint is not uploaded"};
    }
    store_.put(key(name + "/" + file), directory / file);
  }
  check_sizes(name, directory);
  store_.put(key(name + "/" + listing_name()), manifest);
}

void RemoteRun::remove_checkpoint(const std::string& name) {
  store_.remove(key(name + "/" + listing_name()));
  for (const auto& object : store_.list(key(name))) store_.remove(object.key);
}

void RemoteRun::download_checkpoint(const std::string& name, const fs::path& run_directory) {
  const auto staged = run_directory / ".staging" / ("download_" + name);
  std::error_code error;
  fs::remove_all(staged, error);
  files::make_directories(staged);
  const auto manifest = manifest_of(name);
  const auto listing = parse_listing(manifest, url() + "/" + name + "/" + listing_name());
  for (const auto& [file, bytes] : listing.files) {
    files::make_directories((staged / file).parent_path());
    download(store_, key(name + "/" + file), bytes, staged / file);
  }
  files::write_atomically(staged / listing_name(), manifest);
  for (const auto& entry : fs::recursive_directory_iterator{staged}) {
    if (entry.is_directory()) files::sync(entry.path());
  }
  verify_directory(staged);
  files::rename(staged, run_directory / name);
  files::sync(run_directory);
}

}  // namespace troupe
