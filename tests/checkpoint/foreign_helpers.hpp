#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <span>
#include <string>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <vector>

#include "../../checkpoint/foreign/zip_directory.hpp"

namespace troupe::testing {

namespace fs = std::filesystem;

/// Those of the repository, or those that were just made there: TROUPE_TEST_FOREIGN.
inline fs::path fixture(const std::string& name) {
  const char* fresh = std::getenv("TROUPE_TEST_FOREIGN");
  return fs::path{fresh ? fresh : TROUPE_TEST_FOREIGN} / name;
}

inline std::string read_file(const fs::path& file) {
  std::ifstream in{file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

inline void write_file(const fs::path& file, const std::string& text) {
  std::ofstream{file, std::ios::binary} << text;
}

struct Scratch {
  fs::path path = [] {
    std::string name = (fs::temp_directory_path() / "foreign_XXXXXX").string();
    return fs::path{::mkdtemp(name.data())};
  }();
  ~Scratch() { fs::remove_all(path); }
};

/// "FileCorrupt <text>", or "" when nothing was thrown. Another exception than Failure fails the
/// test.
inline std::string failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + " " + failure.what();
  }
  return "";
}

inline std::span<std::byte> bytes_of_text(std::string& text) {
  return {reinterpret_cast<std::byte*>(text.data()), text.size()};
}

inline std::string number(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

struct ZipItem {
  std::string name;
  std::string data;
  std::uint16_t method = 0;
  std::uint16_t flags = 0;
};

/// A zip archive of stored entries, written from the format's description, independent of the
/// reader.
inline std::string make_zip(const std::vector<ZipItem>& items) {
  std::string out;
  std::string directory;
  for (auto item : items) {
    const auto sizes = number(detail::crc32(bytes_of_text(item.data)), 4) +
                       number(item.data.size(), 4) + number(item.data.size(), 4);
    const auto common = number(20, 2) + number(item.flags, 2) + number(item.method, 2) +
                        number(0, 4) + sizes + number(item.name.size(), 2) + number(0, 2);
    directory += "PK\1\2" + number(20, 2) + common + number(0, 8) + number(0, 2) +
                 number(out.size(), 4) + item.name;
    out += "PK\3\4" + common + item.name + item.data;
  }
  const auto begin = out.size();
  return out + directory + "PK\5\6" + number(0, 4) + number(items.size(), 2) +
         number(items.size(), 2) + number(directory.size(), 4) + number(begin, 4) + number(0, 2);
}

/// A file as torch.save makes it, with this pickle and these storages.
inline std::string make_torch_file(const std::string& pickle,
                                   const std::vector<std::string>& storages = {}) {
  std::vector<ZipItem> items{{"archive/data.pkl", pickle}, {"archive/byteorder", "little"}};
  for (std::size_t i = 0; i < storages.size(); ++i)
    items.push_back({"archive/data/" + std::to_string(i), storages[i]});
  return make_zip(items);
}

/// What reading it as a file of torch.save refuses, or "".
inline std::string refused(std::string file, const PickleOptions& options = {}) {
  return failure_of(
      [&] { (void)read_torch_bytes(bytes_of_text(file), nullptr, "test.bin", options); });
}

inline std::string refused_pickle(const std::string& pickle, const PickleOptions& options = {}) {
  return refused(make_torch_file(pickle), options);
}

/// Compares with a safetensors file of make_foreign_fixtures.py: bytes always; dtype and shape
/// unless it holds bare bytes.
inline void expect_tensor(const ForeignTensor& read, const ForeignTensor& want,
                          const std::string& what) {
  EXPECT_EQ(contiguous_bytes(read), contiguous_bytes(want)) << what;
  if (want.dtype == TorchDtype::uint8 && read.dtype != TorchDtype::uint8) return;
  EXPECT_EQ(name(read.dtype), name(want.dtype)) << what;
  EXPECT_EQ(read.shape, want.shape) << what;
}

}  // namespace troupe::testing
