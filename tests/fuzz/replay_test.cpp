// The same functions as the fuzzers, on what they once found (corpus/<target>/), on the fixtures,
// and on a fixed series of damaged copies of both.
#include <random>

#include "../checkpoint/foreign_helpers.hpp"
#include "targets.hpp"

namespace troupe::fuzz {
namespace {

namespace fs = std::filesystem;

/// Files of the folder that are at most 64 KiB, in order.
std::vector<std::string> files_in(const fs::path& folder) {
  std::vector<fs::path> paths;
  if (fs::exists(folder)) {
    for (const auto& entry : fs::recursive_directory_iterator{folder}) {
      if (entry.is_regular_file() && entry.file_size() <= 65536) paths.push_back(entry.path());
    }
  }
  std::ranges::sort(paths);
  std::vector<std::string> out;
  for (const auto& path : paths) out.push_back(testing::read_file(path));
  return out;
}

void feed(const Target& target, const std::string& text) {
  target.run(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}

class Replay : public ::testing::TestWithParam<Target> {};

TEST_P(Replay, CorpusAndFixturesGiveAValueOrAFailure) {
  const auto corpus = files_in(fs::path{TROUPE_TEST_CORPUS} / GetParam().name);
  EXPECT_FALSE(corpus.empty());
  for (const auto& text : corpus) feed(GetParam(), text);
  for (const auto& text : files_in(TROUPE_TEST_FOREIGN)) feed(GetParam(), text);
}

TEST_P(Replay, DamagedCorpusGivesAValueOrAFailure) {
  const auto corpus = files_in(fs::path{TROUPE_TEST_CORPUS} / GetParam().name);
  ASSERT_FALSE(corpus.empty());
  std::mt19937 draw{11};
  for (int round = 0; round < 4000; ++round) {
    auto text = corpus[draw() % corpus.size()];
    if (text.empty()) continue;
    for (unsigned flips = 1 + draw() % 4; flips > 0; --flips)
      text[draw() % text.size()] ^= static_cast<char>(1U << draw() % 8);
    const auto& other = corpus[draw() % corpus.size()];
    if (round % 4 == 0 && !other.empty())
      text.insert(draw() % text.size(), other, draw() % other.size(), draw() % 60);
    if (round % 7 == 0) text.resize(draw() % text.size());
    feed(GetParam(), text);
  }
}

INSTANTIATE_TEST_SUITE_P(Parsers, Replay, ::testing::ValuesIn(targets()),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace troupe::fuzz
