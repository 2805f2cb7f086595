#include <unicode/utf8.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <span>
#include <string_view>
#include <troupe/errors.hpp>
#include <troupe/mrpc.hpp>

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

/// Where in the file an error is told.
struct Place {
  const fs::path& file;
  std::size_t line = 0;

  [[noreturn]] void refuse(const std::string& text) const {
    throw Failure{Errc::DataMalformed, file.string() + ":" + std::to_string(line) + ": " + text};
  }
};

std::string read_whole(const fs::path& file) {
  if (fs::is_directory(file))
    throw Failure{Errc::FileNotFound, file.string() + ": is a directory, not a file of pairs"};
  std::ifstream in{file, std::ios::binary};
  if (!in)
    throw Failure{Errc::FileNotFound, file.string() + ": no such file, or it may not be read"};
  std::string out{std::istreambuf_iterator<char>{in}, {}};
  if (in.bad()) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be read"};
  return out;
}

void check_utf8(std::string_view line, const Place& place) {
  for (std::size_t at = 0; at < line.size();) {
    const auto begin = at;
    UChar32 c = 0;
    U8_NEXT(line.data(), at, line.size(), c);
    if (c < 0)
      place.refuse("byte " + std::to_string(begin + 1) +
                   " of the line is not UTF-8; the file should be saved as UTF-8");
  }
}

std::vector<std::string_view> split_tabs(std::string_view line) {
  std::vector<std::string_view> out;
  for (;;) {
    const auto tab = line.find('\t');
    out.push_back(line.substr(0, tab));
    if (tab == std::string_view::npos) return out;
    line.remove_prefix(tab + 1);
  }
}

struct Columns {
  std::size_t label = 0, first = 0, second = 0, count = 0;
};

Columns read_header(std::string_view line, const Place& place) {
  const auto names = split_tabs(line);
  const auto find = [&](std::string_view name, std::string_view other) {
    const auto found = std::ranges::find_if(names, [&](auto n) { return n == name || n == other; });
    if (found == names.end()) {
      place.refuse("the header has no column '" + std::string(name) + "' (or '" +
                   std::string(other) +
                   "'); MRPC's is Quality, #1 ID, #2 ID, #1 String, #2 String, separated by tabs");
    }
    return static_cast<std::size_t>(found - names.begin());
  };
  return {find("Quality", "label"), find("#1 String", "sentence1"), find("#2 String", "sentence2"),
          names.size()};
}

SentencePair read_row(std::string_view line, const Columns& columns, const Place& place) {
  check_utf8(line, place);
  const auto fields = split_tabs(line);
  if (fields.size() != columns.count) {
    place.refuse("has " + std::to_string(fields.size()) +
                 " tab-separated columns, the header names " + std::to_string(columns.count));
  }
  const auto label = fields[columns.label];
  if (label != "0" && label != "1")
    place.refuse("the label should be 0 or 1, not '" + std::string(label.substr(0, 40)) + "'");
  for (const auto column : {columns.first, columns.second}) {
    if (fields[column].empty())
      place.refuse("the sentence in column " + std::to_string(column + 1) + " is empty");
  }
  return {std::string(fields[columns.first]), std::string(fields[columns.second]),
          label == "1" ? 1 : 0};
}

fs::path find_file(const fs::path& directory, const std::string& given,
                   std::span<const std::string_view> usual) {
  if (!given.empty()) return directory / given;
  std::string tried;
  for (const auto name : usual) {
    if (fs::exists(directory / name)) return directory / name;
    tried += (tried.empty() ? "" : ", ") + std::string(name);
  }
  throw Failure{Errc::FileNotFound, directory.string() + ": has none of " + tried};
}

}  // namespace

std::vector<SentencePair> read_mrpc(const fs::path& file) {
  const auto text = read_whole(file);
  std::string_view rest = text;
  if (rest.starts_with(kByteOrderMark)) rest.remove_prefix(kByteOrderMark.size());
  Place place{file};
  Columns columns;
  std::vector<SentencePair> out;
  while (!rest.empty()) {
    ++place.line;
    auto line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (place.line == 1) {
      columns = read_header(line, place);
    } else if (!line.empty() || rest.find_first_not_of("\r\n") != std::string_view::npos) {
      out.push_back(read_row(line, columns, place));
    }
  }
  if (out.empty()) {
    place.line = std::max<std::size_t>(place.line, 1);
    place.refuse("the file has no pairs");
  }
  return out;
}

PairFiles find_pairs(const fs::path& directory, const std::string& train_file, const std::string& eval_file) {
  if (!fs::is_directory(directory))
    throw Failure{Errc::FileNotFound, directory.string() + ": no such directory"};
  constexpr std::array<std::string_view, 3> train{"pairs_train.tsv", "train.tsv",
                                                  "msr_paraphrase_train.txt"};
  constexpr std::array<std::string_view, 3> eval{"pairs_dev.tsv", "dev.tsv",
                                                 "msr_paraphrase_test.txt"};
  return {find_file(directory, train_file, train), find_file(directory, eval_file, eval)};
}

PairSplits load_pairs(const fs::path& directory, const std::string& train_file,
                      const std::string& eval_file) {
  const auto files = find_pairs(directory, train_file, eval_file);
  return {read_mrpc(files.train), read_mrpc(files.eval)};
}

}  // namespace troupe
