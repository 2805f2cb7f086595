// The fuzzers' functions on their corpus (tests/fuzz/corpus) and on a fixed series of damaged copies.
#include "../fuzz/dataset_targets.hpp"

#include <cstdlib>
#include <random>

#include "dataset_files.hpp"

namespace troupe::fuzz {
namespace {

class DatasetReplay : public ::testing::TestWithParam<DatasetTarget> {
 protected:
  static std::vector<std::string> corpus() {
    std::vector<std::string> all;
    for (const auto& entry : std::filesystem::directory_iterator{std::filesystem::path{TROUPE_TEST_CORPUS} / GetParam().name}) all.push_back(testing::read_bytes(entry.path()));
    std::ranges::sort(all);
    return all;
  }
  static void feed(const std::string& text) { GetParam().run(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()); }
};

TEST_P(DatasetReplay, CorpusAndDamagedCopiesAreReadAlikeInEveryWay) {
  const auto seeds = corpus();
  ASSERT_FALSE(seeds.empty());
  for (const auto& seed : seeds) feed(seed);
  const char* const more = std::getenv("TROUPE_FUZZ_ROUNDS");  // others than the usual ones
  std::mt19937 draw{more ? static_cast<unsigned>(::getpid()) : 11U};
  const int rounds = more ? std::atoi(more) : 400;
  for (int round = 0; round < rounds; ++round) {
    auto text = seeds[draw() % seeds.size()];
    if (text.empty()) continue;
    for (unsigned flips = 1 + draw() % 4; flips > 0; --flips) text[draw() % text.size()] ^= static_cast<char>(1U << draw() % 8);
    const auto& other = seeds[draw() % seeds.size()];
    if (round % 4 == 0 && !other.empty()) text.insert(draw() % text.size(), other, draw() % other.size(), draw() % 60);
    if (round % 7 == 0) text.resize(draw() % text.size());
    if (more) std::ofstream{std::filesystem::temp_directory_path() / ("troupe_fuzz_" + std::string{GetParam().name}), std::ios::binary} << text;  // what a crash came of
    feed(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, DatasetReplay, ::testing::ValuesIn(dataset_targets()), [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace troupe::fuzz
