#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <troupe/object_store.hpp>

namespace troupe {

/// A directory that is gone after the test.
class StoreTest : public testing::Test {
 protected:
  std::filesystem::path root_ = make_root();

  ~StoreTest() override {
    std::filesystem::remove_all(root_);
    std::filesystem::remove(root_.string() + "-s3.log");
  }

  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((root_ / name).parent_path());
    std::ofstream{root_ / name, std::ios::binary} << text;
    return root_ / name;
  }
  static std::string read(const std::filesystem::path& file) {
    std::ostringstream text;
    text << std::ifstream{file, std::ios::binary}.rdbuf();
    return text.str();
  }
  static std::string get(ObjectStore& store, const std::string& key, std::uint64_t begin, std::size_t size) {
    std::string text(size, '?');
    store.get(key, begin, std::as_writable_bytes(std::span{text}));
    return text;
  }
  /// Bytes that differ everywhere, so that no part can be taken for another.
  static std::string noise(std::size_t size) {
    std::string text(size, '\0');
    std::uint64_t state = 88172645463325252ull;
    for (auto& c : text) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      c = static_cast<char>(state);
    }
    return text;
  }
  template <class F>
  static std::pair<StoreError, std::string> failure_of(F&& body) {
    try {
      body();
    } catch (const StoreFailure& failure) {
      return {failure.error(), failure.what()};
    }
    return {StoreError::Cancelled, "nothing failed"};
  }

 private:
  static std::filesystem::path make_root() {
    auto pattern = (std::filesystem::temp_directory_path() / "troupe-store-XXXXXX").string();
    return ::mkdtemp(pattern.data());
  }
};

}  // namespace troupe
