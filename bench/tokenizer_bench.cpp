// Tokens a second of one thread: pairs of English sentences, cut at 128, WordPiece and byte-level
// BPE with vocabularies of 8,000. Text and vocabularies are those of bench/peers/data_tokenizer.py,
// which writes them (`prepare`) and prints a checksum of its ids: ours must be the same.
//
//   tokenizer_bench [--case wordpiece|bpe] [--data DIRECTORY] [--rounds N] [--json FILE]
//   prints {"tokens_per_s", "tokens_per_cpu_s", "one_by_one_per_cpu_s", "tokens", "ids"} as its
//   last line
#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <troupe/errors.hpp>
#include <troupe/tokenizer.hpp>

namespace {

using namespace troupe;
namespace fs = std::filesystem;

std::uint32_t crc32(std::span<const std::int64_t> ids) {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    auto c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0xEDB88320U : 0U);
    table[i] = c;
  }
  auto crc = ~std::uint32_t{0};
  for (const auto byte : std::as_bytes(ids))
    crc = (crc >> 8) ^ table[(crc ^ static_cast<std::uint32_t>(byte)) & 0xFF];
  return ~crc;
}

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

nlohmann::json measure(const Tokenizer& tokenizer, const nlohmann::json& pairs, int rounds) {
  std::vector<std::string> firsts, seconds;
  for (const auto& pair : pairs) {
    firsts.push_back(pair[0]);
    seconds.push_back(pair[1]);
  }
  const std::vector<std::string_view> a(firsts.begin(), firsts.end()),
      b(seconds.begin(), seconds.end());
  const EncodeOptions options{.max_length = 128};
  TokenBatch batch = tokenizer.encode_batch(a, b, options);
  std::vector<double> wall, cpu, single;
  for (int round = 0; round < rounds; ++round) {
    const auto wall_begin = wall_seconds(), cpu_begin = cpu_seconds();
    batch = tokenizer.encode_batch(a, b, options);
    wall.push_back(wall_seconds() - wall_begin);
    cpu.push_back(cpu_seconds() - cpu_begin);
    const auto single_begin = cpu_seconds();
    std::size_t count = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
      count += tokenizer.encode(a[i], b[i], options).size();
    if (count != batch.ids.size())
      throw Failure{Errc::Internal, "one by one gives another number of ids"};
    single.push_back(cpu_seconds() - single_begin);
  }
  const auto tokens = static_cast<double>(batch.ids.size());
  return {{"tokens_per_s", tokens / median(wall)},
          {"tokens_per_cpu_s", tokens / median(cpu)},
          {"one_by_one_per_cpu_s", tokens / median(single)},
          {"tokens", batch.ids.size()},
          {"ids", crc32(batch.ids)}};
}

fs::path data_directory() {
  const char* const cache = std::getenv("TROUPE_CACHE");
  const char* const home = std::getenv("HOME");
  return fs::path{cache ? cache : std::string(home ? home : "") + "/.cache/troupe"} /
         "bench-tokenizer";
}

}  // namespace

int main(int argc, char** argv) {
  std::string kind = "wordpiece", json_file;
  auto data = data_directory();
  int rounds = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--case") kind = value;
    if (option == "--data") data = value;
    if (option == "--rounds") rounds = std::max(1, std::atoi(value.c_str()));
    if (option == "--json") json_file = value;
  }
  try {
    std::ifstream in{data / "pairs.json"};
    if (!in)
      throw Failure{Errc::FileNotFound,
                    (data / "pairs.json").string() +
                        ": no such file; bench/peers/data_tokenizer.py prepare writes it"};
    const auto figures = measure(*load_tokenizer(data / kind), nlohmann::json::parse(in), rounds);
    if (!json_file.empty()) std::ofstream{json_file} << figures << '\n';
    std::cout << figures << '\n';
  } catch (const std::exception& error) {
    std::cerr << "tokenizer_bench: " << error.what() << '\n';
    return 1;
  }
}
