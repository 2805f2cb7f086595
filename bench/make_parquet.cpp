// Writes the Parquet set of token ids that benchmarks and memory tests read: the same bytes each time.
//
//   make_parquet DIR [--rows N] [--files N] [--ids N] [--row-group N]     100,000 rows of 64 ids and a label in 8 files, snappy
//   make_parquet DIR --gb N [--files N] …                                 N GB of plain, uncompressed rows
//
// Prints one line: rows, bytes, seconds.
#include "token_parquet.hpp"

#include <troupe/errors.hpp>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string_view>

int main(int argc, char** argv) {
  const auto usage = [] { return std::fprintf(stderr, "usage: make_parquet DIR [--rows N | --gb N] [--files N] [--ids N] [--row-group N]\n"), 2; };
  std::map<std::string_view, std::int64_t> numbers{{"--rows", 0}, {"--gb", 0}, {"--files", 8}, {"--ids", 64}, {"--row-group", 4096}};
  if (argc < 2 || argc % 2 != 0) return usage();
  for (int i = 2; i < argc; i += 2) {
    const auto found = numbers.find(argv[i]);
    const std::string_view text{argv[i + 1]};
    if (found == numbers.end() || std::from_chars(text.data(), text.data() + text.size(), found->second).ptr != text.data() + text.size()) return usage();
  }
  troupe::bench::TokenParquet options;
  options.num_files = static_cast<int>(numbers["--files"]);
  options.ids_per_row = static_cast<std::int32_t>(numbers["--ids"]);
  options.row_group_rows = numbers["--row-group"];
  options.plain = numbers["--gb"] > 0;
  if (numbers["--rows"] > 0) options.num_rows = numbers["--rows"];
  if (options.plain) options.num_rows = troupe::bench::rows_of_bytes(numbers["--gb"] * 1'000'000'000, options.ids_per_row);
  try {
    const auto begin = std::chrono::steady_clock::now();
    std::uintmax_t bytes = 0;
    for (const auto& path : troupe::bench::write_token_parquet(argv[1], options)) bytes += std::filesystem::file_size(path);
    const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%lld rows, %llu bytes, %.1f s\n", static_cast<long long>(options.num_rows), static_cast<unsigned long long>(bytes), seconds);
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "make_parquet: %s\n", failure.what());
    return 1;
  }
}
