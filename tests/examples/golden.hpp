#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <troupe/errors.hpp>

namespace troupe::test {

/// A folder of the golden data; TROUPE_GOLDEN names another directory of the same layout.
inline std::filesystem::path golden(const std::string& folder) {
  const char* const other = std::getenv("TROUPE_GOLDEN");
  return std::filesystem::path{other ? other : TROUPE_TEST_GOLDEN} / folder;
}

/// The directory of the real MiniLM. Throws with a line that says how to get it.
inline std::filesystem::path minilm() {
  const char* const given = std::getenv("TROUPE_MINILM");
  const char* const cache = std::getenv("TROUPE_CACHE");
  const char* const home = std::getenv("HOME");
  const auto directory =
      given   ? std::filesystem::path{given}
      : cache ? std::filesystem::path{cache} / "minilm" / "model"
              : std::filesystem::path{home ? home : ""} / ".cache" / "troupe" / "minilm" / "model";
  if (std::filesystem::exists(directory / "vocab.txt")) return directory;
  throw Failure{Errc::FileNotFound,
                directory.string() +
                    ": no MiniLM here; run `make test`, which fetches it, or set "
                    "TROUPE_MINILM to a directory that holds it"};
}

inline std::string read_file(const std::filesystem::path& file) {
  std::ifstream in{file, std::ios::binary};
  if (!in) throw Failure{Errc::FileNotFound, file.string() + ": no such file"};
  return {std::istreambuf_iterator<char>{in}, {}};
}

inline nlohmann::json read_json(const std::filesystem::path& file) {
  return nlohmann::json::parse(read_file(file));
}

/// An empty directory for one test.
inline std::filesystem::path fresh_directory(const std::string& name) {
  const auto path = std::filesystem::temp_directory_path() / ("troupe_" + name + "_" + std::to_string(::getpid()));
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

/// "Code text" of the Failure that `act` throws.
inline std::string failure_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Failure& failure) {
    return std::string(name(failure.code())) + " " + failure.what();
  }
  return "nothing was thrown";
}

}  // namespace troupe::test
