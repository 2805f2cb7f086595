#include "document.hpp"

#include <troupe/errors.hpp>

#include <filesystem>
#include <fstream>

namespace troupe::detail {

namespace fs = std::filesystem;

namespace {

constexpr std::uintmax_t max_bytes = 1 << 20;

}  // namespace

std::string Document::at(const std::string& path) const {
  std::string text = name;
  if (const auto line = lines.find(path); line != lines.end()) text += ":" + std::to_string(line->second);
  return path.empty() ? text + ": " : text + ": " + path + ": ";
}

std::string Document::origin(const std::string& path) const {
  const auto found = origins.find(path);
  return found != origins.end() ? found->second : name + ":" + path;
}

void Document::fail(const std::string& path, const std::string& text) const {
  throw Failure{Errc::InvalidConfig, at(path) + text};
}

std::string read_text(const std::string& file) {
  std::error_code error;
  const auto status = fs::status(file, error);
  if (error || status.type() == fs::file_type::not_found) throw Failure{Errc::FileNotFound, file + ": there is no such file"};
  if (status.type() != fs::file_type::regular) throw Failure{Errc::InvalidConfig, file + ": is not a file"};
  std::ifstream in{file, std::ios::binary};
  if (!in) throw Failure{Errc::StorageUnavailable, file + ": cannot be opened; is it readable?"};
  std::string text(max_bytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (in.bad()) throw Failure{Errc::StorageUnavailable, file + ": cannot be read"};
  if (text.size() > max_bytes) {
    throw Failure{Errc::InvalidConfig, file + ": is larger than 1 MiB, which no configuration is; is it the right file?"};
  }
  return text;
}

}  // namespace troupe::detail
