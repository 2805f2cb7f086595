// The rules of dealing, written down a second time and naively, against the loader: lengths, batch sizes, ranks and options to 64.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <troupe/data/samplers.hpp>

#include "data_loader_fixtures.hpp"

namespace troupe {
namespace {

using Row = std::vector<std::int64_t>;
enum class Kind : std::uint8_t { Map, Stream, DispatchedMap, DispatchedStream };

struct Case {
  Kind kind = Kind::Map;
  std::int64_t n = 0, batch_size = 1;
  int world = 1;
  bool split = false, even = true, drop_last = false;
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "kind " << static_cast<int>(c.kind) << " n " << c.n << " batch_size " << c.batch_size << " world " << c.world << " split " << c.split << " even "
             << c.even << " drop_last " << c.drop_last;
}

/// Batches of a plain loader over 0 … n - 1.
Batches plain(std::int64_t n, std::int64_t batch_size, bool drop_last) {
  Batches batches;
  for (std::int64_t i = 0; i < n; ++i) {
    if (i % batch_size == 0) batches.emplace_back();
    batches.back().push_back(i);
  }
  if (drop_last && !batches.empty() && std::ssize(batches.back()) < batch_size) batches.pop_back();
  return batches;
}

/// Takes items one after another, from the beginning again when they are used up.
Row cycled(const Row& items, std::size_t count) {
  Row row;
  for (std::size_t i = 0; i < count; ++i) row.push_back(items[i % items.size()]);
  return row;
}

/// What each rank gets, by rounds: the global batch, filled up or not, cut into the ranks' parts.
std::vector<Batches> model(const Case& c) {
  const auto world = static_cast<std::size_t>(c.world);
  std::vector<Batches> ranks(world);
  const auto total = static_cast<std::size_t>(c.split ? c.batch_size : c.batch_size * c.world), part = total / world;
  const bool dispatched = c.world > 1 && (c.kind == Kind::DispatchedMap || c.kind == Kind::DispatchedStream);
  const bool fills = c.world > 1 && (c.kind != Kind::Map || c.even);
  for (auto round : plain(c.n, static_cast<std::int64_t>(total), c.drop_last)) {
    Row all(static_cast<std::size_t>(c.n));
    std::iota(all.begin(), all.end(), 0);
    auto share = part;
    if (dispatched) {
      if (round.size() < total) share = (round.size() + world - 1) / world;
      const auto more = cycled(all, share * world - round.size());
      round.insert(round.end(), more.begin(), more.end());
    } else if (fills) {
      const auto more = cycled(all, total - round.size());
      round.insert(round.end(), more.begin(), more.end());
    }
    for (std::size_t r = 0; r < world; ++r) {
      const auto begin = std::min(round.size(), r * share), end = std::min(round.size(), begin + share);
      if (begin < end) ranks[r].emplace_back(round.begin() + static_cast<std::ptrdiff_t>(begin), round.begin() + static_cast<std::ptrdiff_t>(end));
    }
  }
  return ranks;
}

struct Got {
  Batches batches;
  LoaderState last;
  std::int64_t size = 0;
};

std::vector<Got> run(const Case& c) {
  std::vector<Got> ranks(static_cast<std::size_t>(c.world));
  const bool dispatched = c.kind == Kind::DispatchedMap || c.kind == Kind::DispatchedStream;
  const auto rank_main = [&](int rank, DataLoader::BroadcastBytes broadcast) {
    const DataLoaderOptions options{.batch_size = c.batch_size, .drop_last = c.drop_last};
    const bool map = c.kind == Kind::Map || c.kind == Kind::DispatchedMap;
    auto loader = map ? DataLoader{counting(c.n), options} : DataLoader{std::make_shared<CountingStream>(c.n, c.n % 2 == 0), options};
    loader.shard(rank, c.world, {.split_batches = c.split, .even_batches = c.even, .dispatch_batches = dispatched}, 0, std::move(broadcast));
    auto& got = ranks[static_cast<std::size_t>(rank)];
    got.size = loader.size();
    for (const auto& batch : loader) {
      got.batches.push_back(indices(batch));
      got.last = loader.state();
    }
  };
  if (dispatched && c.world > 1) {
    on_ranks(c.world, rank_main);
  } else {
    for (int rank = 0; rank < c.world; ++rank) rank_main(rank, [](std::string&) { FAIL() << "nothing is to be broadcast"; });
  }
  return ranks;
}

void check(const Case& c) {
  const auto expected = model(c);
  const auto got = run(c);
  Row all;
  std::size_t rounds = 0;
  bool same = true;
  for (std::size_t r = 0; r < got.size(); ++r) {
    ASSERT_EQ(got[r].batches, expected[r]) << c << " rank " << r;
    ASSERT_EQ(got[r].size, std::ssize(expected[r])) << c << " rank " << r;
    rounds = std::max(rounds, expected[r].size());
    same = same && expected[r].size() == expected[0].size();
  }
  // What gather_for_metrics keeps, where all ranks have as many rows: every sample that is not dropped, once and in order.
  if (!same || (c.kind == Kind::Map && !c.even)) return;
  for (std::size_t s = 0; s < rounds; ++s) {
    Row rows;
    for (const auto& rank : got) rows.insert(rows.end(), rank.batches[s].begin(), rank.batches[s].end());
    const auto remainder = got[0].last.remainder;
    if (s + 1 == rounds && remainder > 0 && c.world > 1) rows.resize(std::min(rows.size(), static_cast<std::size_t>(remainder)));
    all.insert(all.end(), rows.begin(), rows.end());
  }
  const auto total = c.split ? c.batch_size : c.batch_size * c.world;
  Row whole(static_cast<std::size_t>(c.drop_last ? c.n / total * total : c.n));
  std::iota(whole.begin(), whole.end(), 0);
  ASSERT_EQ(all, whole) << c;
}

TEST(LoaderRules, HoldForAllSmallNumbers) {
  int cases = 0;
  for (const auto kind : {Kind::Map, Kind::Stream}) {
    for (std::int64_t n = 0; n <= 17; ++n) {
      for (const std::int64_t batch_size : {1, 2, 3, 4, 6}) {
        for (int world = 1; world <= 4; ++world) {
          for (int options = 0; options < 8; ++options) {
            const Case c{kind, n, batch_size, world, (options & 1) != 0, (options & 2) != 0, (options & 4) != 0};
            if (c.split && batch_size % world != 0) continue;
            check(c);
            ++cases;
            if (testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
  EXPECT_GT(cases, 4000);
}

TEST(LoaderRules, HoldForNumbersUpTo64) {
  std::mt19937 random{20261129};
  const auto upto = [&](std::int64_t least, std::int64_t most) { return std::uniform_int_distribution<std::int64_t>{least, most}(random); };
  for (int i = 0; i < 3000; ++i) {
    Case c{static_cast<Kind>(upto(0, 1)), upto(0, 64), upto(1, 64), static_cast<int>(upto(1, 64)), upto(0, 1) == 1, upto(0, 1) == 1, upto(0, 1) == 1};
    if (c.split) c.batch_size = std::max<std::int64_t>(1, c.batch_size / c.world) * c.world;
    check(c);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(LoaderRules, HoldForDispatchedBatches) {
  std::mt19937 random{7};
  const auto upto = [&](std::int64_t least, std::int64_t most) { return std::uniform_int_distribution<std::int64_t>{least, most}(random); };
  for (int i = 0; i < 300; ++i) {
    Case c{static_cast<Kind>(upto(2, 3)), upto(0, 64), upto(1, 16), static_cast<int>(upto(1, 6)), upto(0, 1) == 1, true, upto(0, 1) == 1};
    if (c.split) c.batch_size = std::max<std::int64_t>(1, c.batch_size / c.world) * c.world;
    check(c);
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace troupe
