#include "checkpoint_text.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace troupe::tools {

namespace {

namespace fs = std::filesystem;

std::string value_text(const MetricValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* number = std::get_if<std::int64_t>(&value)) return std::to_string(*number);
  char text[40];
  (void)std::snprintf(text, sizeof text, "%.6g", std::get<double>(value));
  return text;
}

bool starts_as_number(const std::string& cell) { return !cell.empty() && (cell[0] == '-' || (cell[0] >= '0' && cell[0] <= '9')); }

// Characters, not bytes, as far as a terminal's columns go.
std::size_t width(const std::string& cell) {
  return static_cast<std::size_t>(std::count_if(cell.begin(), cell.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

bool is_run(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory / "reports.jsonl", error) || fs::exists(directory / "result.json", error)) return true;
  for (const auto& entry : fs::directory_iterator{directory, error}) {
    if (entry.path().filename().string().starts_with("checkpoint_") && is_checkpoint(entry.path())) return true;
  }
  return false;
}

// The first few folders of `directory` for which `is` holds.
std::string some_below(const fs::path& directory, bool (*is)(const fs::path&)) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator{directory, error}) {
    if (entry.is_directory() && is(entry.path())) names.push_back(entry.path().filename().string());
  }
  std::sort(names.rbegin(), names.rend());
  std::string list;
  for (std::size_t i = 0; i < std::min<std::size_t>(names.size(), 3); ++i) list += (i ? ", " : "") + names[i];
  return list + (names.size() > 3 ? ", …" : "");
}

void must_be_directory(const fs::path& directory) {
  std::error_code error;
  if (fs::is_directory(directory, error)) return;
  const auto why = fs::exists(directory, error) ? " is a file, not a directory" : " does not exist" + nearest_path(directory);
  throw Failure{Errc::FileNotFound, directory.string() + why};
}

}  // namespace

std::string size_text(std::uint64_t bytes) {
  const char* units[] = {"kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) return std::to_string(bytes) + " B";
  double value = static_cast<double>(bytes) / 1000;
  std::size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < std::size(units); ++unit) value /= 1000;
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.1f %s", value, units[unit]);
  return text;
}

std::string age_text(fs::file_time_type time) {
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(fs::file_time_type::clock::now() - time).count();
  if (age < 60) return "just now";
  if (age < 2 * 3600) return std::to_string(age / 60) + " min ago";
  if (age < 2 * 86'400) return std::to_string(age / 3600) + " h ago";
  return std::to_string(age / 86'400) + " days ago";
}

std::string metrics_text(const Metrics& metrics) {
  std::string text;
  for (const auto& [name, value] : metrics) text += (text.empty() ? "" : " ") + name + "=" + value_text(value);
  return text;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string count_text(std::uint64_t count, const std::string& what) { return std::to_string(count) + " " + what + (count == 1 ? "" : "s"); }

std::uint64_t elements_of(const TensorSpec& tensor) {
  std::uint64_t elements = 1;
  for (const auto size : tensor.shape) elements *= size;
  return elements;
}

std::uint64_t bytes_of(const TensorSpec& tensor) { return elements_of(tensor) * bits_of(tensor.dtype) / 8; }

void print_table(const std::vector<std::vector<std::string>>& rows) {
  if (rows.empty()) return;
  std::vector<std::size_t> widths(rows[0].size(), 0);
  std::vector<bool> right(rows[0].size(), rows.size() > 1);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      widths[c] = std::max(widths[c], width(rows[r][c]));
      if (r > 0 && !rows[r][c].empty() && rows[r][c] != "-" && !starts_as_number(rows[r][c])) right[c] = false;
    }
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t c = 0; c < row.size(); ++c) {
      const std::string pad(widths[c] - width(row[c]), ' ');
      line += (c ? "  " : "") + (right[c] ? pad + row[c] : row[c] + pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::printf("%s\n", line.c_str());
  }
}

std::string nearest_path(const fs::path& path) {
  const auto whole = path.has_filename() ? path : path.parent_path();
  const auto folder = whole.has_parent_path() ? whole.parent_path() : fs::path{"."};
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator{folder, error}) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  const auto nearest = nearest_name(whole.filename().string(), names);
  return nearest.empty() ? "" : "; did you mean '" + (whole.has_parent_path() ? (folder / nearest).string() : nearest) + "'?";
}

bool is_checkpoint(const fs::path& directory) {
  std::error_code error;
  return fs::exists(directory / manifest_name, error);
}

CheckpointReader open_checkpoint(const std::string& directory) {
  must_be_directory(directory);
  if (!is_checkpoint(directory)) {
    if (const auto some = some_below(directory, is_checkpoint); !some.empty()) {
      throw Failure{Errc::InvalidArgument, directory + " is a run, not a checkpoint; name one of its own: " + some};
    }
  }
  return CheckpointReader{directory};
}

std::vector<fs::path> checkpoints_of_run(const std::string& directory) {
  must_be_directory(directory);
  if (is_checkpoint(directory)) {
    throw Failure{Errc::InvalidArgument, directory + " is a checkpoint, not a run; its run is " + fs::absolute(directory).lexically_normal().parent_path().string()};
  }
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator{directory}) {
    if (entry.is_directory() && entry.path().filename().string().starts_with("checkpoint_")) found.push_back(entry.path());
  }
  if (found.empty() && !is_run(directory)) {
    const auto runs = some_below(directory, is_run);
    throw Failure{Errc::NotFound, directory + " is no run: it has no checkpoint_… and no reports.jsonl" + (runs.empty() ? "" : "; there are runs in it: " + runs)};
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace troupe::tools
