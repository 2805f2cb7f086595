// The fuzzer's function for a link's frames on a fixed series of damaged ones, and on what fuzzing once found.
#include "fuzz/targets.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

namespace troupe::fuzz {
namespace {

void feed(const std::string& bytes) { (void)link_frames(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()); }

TEST(LinkFuzz, SeedsGiveFramesOrAFailure) {
  for (const auto& seed : link_seeds()) {
    for (const char piece : {'\0', '\x0f', '\xff'}) feed(piece + seed);
  }
}

TEST(LinkFuzz, CorpusGivesFramesOrAFailure) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator{std::filesystem::path{TROUPE_TEST_CORPUS} / "link_frames"}) {
    std::ifstream file{entry.path(), std::ios::binary};
    feed({std::istreambuf_iterator<char>{file}, {}});
    ++count;
  }
  EXPECT_GT(count, 0U);
}

TEST(LinkFuzz, DamagedSeedsGiveFramesOrAFailure) {
  const auto seeds = link_seeds();
  std::mt19937 draw{17};
  for (int round = 0; round < 20'000; ++round) {
    auto bytes = static_cast<char>(draw()) + seeds[draw() % seeds.size()];
    for (auto flips = 1 + draw() % 4; flips > 0; --flips) bytes[draw() % bytes.size()] ^= static_cast<char>(1U << draw() % 8);
    const auto& other = seeds[draw() % seeds.size()];
    if (round % 4 == 0) bytes.insert(draw() % bytes.size(), other, draw() % other.size(), draw() % 60);
    if (round % 7 == 0) bytes.resize(draw() % bytes.size());
    feed(bytes);
  }
}

}  // namespace
}  // namespace troupe::fuzz
