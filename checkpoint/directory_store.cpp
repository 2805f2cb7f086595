#include "files.hpp"

#include <troupe/object_store.hpp>

#include <algorithm>
#include <atomic>
#include <fstream>

namespace troupe {

namespace {

namespace fs = std::filesystem;

class DirectoryStore final : public ObjectStore {
 public:
  explicit DirectoryStore(fs::path root) : root_(std::move(root)) {}

  std::string url() const override { return root_.string(); }

  void check() override {
    if (!fs::is_directory(root_)) throw StoreFailure{StoreError::NoBucket, "there is no directory " + root_.string()};
  }

  void put(const std::string& key, const fs::path& file) override {
    check();
    std::error_code error;
    const auto target = root_ / key;
    fs::create_directories(target.parent_path(), error);
    const auto temporary = root_ / (".put_" + std::to_string(next_++));
    if (!fs::copy_file(file, temporary, fs::copy_options::overwrite_existing, error)) {
      throw StoreFailure{StoreError::Local, "cannot copy " + file.string() + " to " + target.string() + ": " + error.message()};
    }
    fs::rename(temporary, target, error);
    if (error) throw StoreFailure{StoreError::Refused, "cannot make " + target.string() + ": " + error.message()};
  }

  void get(const std::string& key, std::uint64_t begin, std::span<std::byte> into) override {
    check();
    if (!head(key)) throw StoreFailure{StoreError::NotFound, (root_ / key).string() + " does not exist"};
    std::ifstream in{root_ / key, std::ios::binary};
    in.seekg(static_cast<std::streamoff>(begin));
    in.read(reinterpret_cast<char*>(into.data()), static_cast<std::streamsize>(into.size()));
    if (static_cast<std::size_t>(in.gcount()) == into.size()) return;
    throw StoreFailure{StoreError::PastEnd, (root_ / key).string() + " ends before byte " + std::to_string(begin + into.size())};
  }

  std::optional<ObjectInfo> head(const std::string& key) override {
    check();
    std::error_code error;
    if (!fs::is_regular_file(root_ / key, error)) return std::nullopt;
    return ObjectInfo{key, fs::file_size(root_ / key)};
  }

  std::vector<ObjectInfo> list(const std::string& prefix) override {
    check();
    std::vector<ObjectInfo> found;
    const auto below = prefix.empty() ? root_ : root_ / prefix;
    if (!fs::is_directory(below)) return found;
    for (const auto& entry : fs::recursive_directory_iterator{below}) {
      const auto key = entry.path().lexically_relative(root_).generic_string();
      if (entry.is_regular_file() && !key.starts_with(".put_")) found.push_back({key, entry.file_size()});
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return found;
  }

  void remove(const std::string& key) override {
    check();
    std::error_code error;
    fs::remove(root_ / key, error);
    // A store knows no directories: those that are empty now go, too.
    for (auto parent = (root_ / key).parent_path(); parent != root_ && fs::remove(parent, error); parent = parent.parent_path()) {
    }
  }

 private:
  fs::path root_;
  std::atomic<int> next_{0};
};

}  // namespace

std::unique_ptr<ObjectStore> make_directory_store(fs::path root) { return std::make_unique<DirectoryStore>(std::move(root)); }

}  // namespace troupe
