#include <fuzz/targets.hpp>

#include <gtest/gtest.h>

#include <random>

// A short run of what tests/fuzz does for hours: seeds with bytes changed, cut out, put in and repeated.

namespace troupe::fuzz {
namespace {

template <class Entry>
void mutate(const std::vector<std::string>& seeds, const Entry& entry) {
  std::mt19937_64 random{11};
  const auto below = [&](std::size_t n) { return n ? random() % n : 0; };
  for (int round = 0; round < 60'000; ++round) {
    auto bytes = seeds[below(seeds.size())];
    for (auto changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes) {
      const auto at = below(bytes.size());
      switch (below(5)) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes[at] = static_cast<char>(bytes[at] + 1 - 2 * static_cast<int>(below(2))); break;
        case 2: bytes.erase(at, 1 + below(9)); break;
        case 3: bytes.insert(at, std::string(1 + below(9), below(2) ? '\0' : '\xFF')); break;
        default: bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
      }
    }
    (void)entry(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
}

TEST(CheckpointFuzz, ManifestsOfAnyBytesAreTakenOrRefused) { mutate(manifest_seeds(), manifest); }
TEST(CheckpointFuzz, RankFilesOfAnyBytesAreTakenOrRefused) { mutate(rank_file_seeds(), rank_file); }

}  // namespace
}  // namespace troupe::fuzz
