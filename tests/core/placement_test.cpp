#include <troupe/errors.hpp>
#include <troupe/placement.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <set>

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Places = std::vector<std::size_t>;

NodeRoom node(const std::string& name, double cpus, double gpus = 0) { return {name, {cpus, gpus}, {cpus, gpus}, {}}; }
RankNeeds needs(const Resources& resources, const Labels& labels = {}) { return {resources, labels}; }
RankNeeds cpus(double count) { return {{count}, {}}; }
RankNeeds gpus(double count) { return {{0, count}, {}}; }
Places pack(const std::vector<NodeRoom>& nodes, const RankNeeds& each, int count, std::vector<std::string> preferred = {}) {
  return place_ranks(nodes, each, count, PlacementStrategy::Pack, preferred).node_of;
}
Places spread(const std::vector<NodeRoom>& nodes, const RankNeeds& each, int count, std::vector<std::string> preferred = {}) {
  return place_ranks(nodes, each, count, PlacementStrategy::Spread, preferred).node_of;
}

TEST(Placement, PackTakesTheFewestNodesAndTheTightestForTheRest) {
  const std::vector<NodeRoom> nodes{node("a", 2), node("b", 8), node("c", 4), node("d", 4)};
  EXPECT_THAT(pack(nodes, cpus(1), 8), ElementsAre(1, 1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(pack(nodes, cpus(1), 2), ElementsAre(0, 0));
  EXPECT_THAT(pack(nodes, cpus(1), 9), ElementsAre(0, 1, 1, 1, 1, 1, 1, 1, 1));
  EXPECT_THAT(pack(nodes, cpus(1), 11), ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2));
}

TEST(Placement, SpreadIsEven) {
  const std::vector<NodeRoom> nodes{node("a", 1), node("b", 8), node("c", 8)};
  EXPECT_THAT(spread(nodes, cpus(1), 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(spread(nodes, cpus(1), 6), ElementsAre(0, 1, 1, 1, 2, 2));
  EXPECT_THAT(spread(nodes, cpus(1), 2), ElementsAre(1, 2));
}

TEST(Placement, StrictPackIsOneNodeOrNone) {
  const std::vector<NodeRoom> nodes{node("a", 3), node("b", 6), node("c", 4)};
  EXPECT_THAT(place_ranks(nodes, cpus(1), 4, PlacementStrategy::StrictPack).node_of, ElementsAre(2, 2, 2, 2));
  const auto none = place_ranks(nodes, cpus(1), 7, PlacementStrategy::StrictPack);
  EXPECT_THAT(none.node_of, IsEmpty());
  EXPECT_EQ(none.missing, "6 of 7 ranks fit on one node: 1 more need 1 cpu each; node a has 3 of 3 cpus free, for 3 ranks; node b has 6 of 6 cpus free, for 6 ranks; "
                          "node c has 4 of 4 cpus free, for 4 ranks");
}

TEST(Placement, StrictSpreadIsANodeForEachOrNone) {
  std::vector<NodeRoom> nodes{node("a", 8), node("b", 8), node("c", 8)};
  EXPECT_THAT(place_ranks(nodes, cpus(1), 3, PlacementStrategy::StrictSpread).node_of, ElementsAre(0, 1, 2));
  nodes[2].takes_ranks = false;
  EXPECT_EQ(place_ranks(nodes, cpus(1), 3, PlacementStrategy::StrictSpread).missing,
            "2 of 3 ranks fit, each on a node of its own: 1 more need 1 cpu each; node c takes no ranks (it drains or is away)");
}

TEST(Placement, SaysWhichNodesLackWhat) {
  std::vector<NodeRoom> nodes{node("a", 8, 4), node("b", 8, 1), node("c", 8, 8), node("d", 8, 8)};
  nodes[1].free.gpus = 0;
  nodes[2].takes_ranks = false;
  nodes[3].labels = {{"zone", "north"}};
  for (auto i : {0, 1, 2}) nodes[static_cast<std::size_t>(i)].labels = {{"zone", "south"}};
  const auto places = place_ranks(nodes, needs({0, 1}, {{"zone", "south"}}), 6, PlacementStrategy::Pack);
  EXPECT_EQ(places.missing, "4 of 6 ranks fit: 2 more need 1 gpu each with zone=south; node a has 4 of 4 gpus free, for 4 ranks; node b has 0 of 1 gpu free; "
                            "node c takes no ranks (it drains or is away); node d has zone=north");
  EXPECT_EQ(place_ranks({}, needs({1, 0, 2ULL << 30}), 2, PlacementStrategy::Pack).missing, "no node has joined; 2 ranks need 1 cpu, 2 GiB of memory each");
  std::vector<NodeRoom> many(12, node("x", 0));
  EXPECT_THAT(place_ranks(many, cpus(1), 1, PlacementStrategy::Pack).missing, HasSubstr("; and 4 more nodes"));
}

TEST(Placement, ARankNeverStraddlesDevices) {
  EXPECT_THAT(pack({node("a", 0, 2)}, gpus(0.4), 4), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(pack({node("a", 0, 2)}, gpus(0.4), 5), IsEmpty());  // 5 × 0.4 = 2, but a device holds two
  EXPECT_THAT(pack({node("a", 0, 2)}, gpus(0.6), 3), IsEmpty());
  EXPECT_THAT(pack({node("a", 0, 1)}, gpus(1.0 / 3), 3), ElementsAre(0, 0, 0));
  EXPECT_THAT(pack({node("a", 0, 4), node("b", 0, 4)}, gpus(3), 2), ElementsAre(0, 1));
  auto halves = node("a", 0, 2);
  halves.free.gpus = 1;
  EXPECT_THAT(pack({halves}, gpus(1), 1), ElementsAre(0));
  halves.devices = {0.5, 0.5};
  EXPECT_THAT(pack({halves}, gpus(1), 1), IsEmpty());
  EXPECT_THAT(pack({halves}, gpus(0.5), 2), ElementsAre(0, 0));
  EXPECT_THROW((void)pack({halves}, gpus(1.5), 1), Failure);
}

TEST(Placement, LooksAtMemoryLabelsAndTheUsersOwnKinds) {
  auto a = node("a", 64), b = node("b", 64);
  a.free.memory_bytes = b.free.memory_bytes = 8ULL << 30;
  a.free.custom["license"] = 1;
  b.labels["disk"] = "nvme";
  EXPECT_THAT(spread({a, b}, needs({1, 0, 3ULL << 30}), 4), ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(spread({a, b}, needs({1, 0, 3ULL << 30}), 5), IsEmpty());
  EXPECT_THAT(spread({a, b}, needs({1, 0, 0, {{"license", 1}}}), 1), ElementsAre(0));
  EXPECT_THAT(spread({a, b}, needs({1, 0, 0, {{"license", 1}}}), 2), IsEmpty());
  EXPECT_THAT(spread({a, b}, needs({1}, {{"disk", "nvme"}}), 2), ElementsAre(1, 1));
}

TEST(Placement, EqualNodesThatHaveTheProcessesComeFirst) {
  const std::vector<NodeRoom> nodes{node("a", 2), node("b", 2), node("c", 2)};
  EXPECT_THAT(pack(nodes, cpus(1), 4, {"c", "b"}), ElementsAre(1, 1, 2, 2));
  EXPECT_THAT(spread(nodes, cpus(1), 1, {"c"}), ElementsAre(2));
  EXPECT_THAT(spread(nodes, cpus(1), 4, {"c"}), ElementsAre(0, 1, 2, 2));
  EXPECT_THAT(place_ranks(nodes, cpus(1), 2, PlacementStrategy::StrictPack, std::vector<std::string>{"b"}).node_of, ElementsAre(1, 1));
}

TEST(Placement, StrategiesHaveRaysNames) {
  EXPECT_EQ(parse_placement_strategy("STRICT_SPREAD"), PlacementStrategy::StrictSpread);
  try {
    (void)parse_placement_strategy("strict-pack");
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_THAT(failure.what(), HasSubstr("did you mean STRICT_PACK?"));
  }
}

TEST(Resources, TakenAndGivenBackIsWhatItWas) {
  Resources free{4, 1, 8ULL << 30, {{"license", 1}}};
  const auto whole = free;
  const Resources each{0.1, 1.0 / 3, 1ULL << 30, {{"license", 0.1}}};
  int taken = 0;
  while (take(free, each)) ++taken;
  EXPECT_EQ(taken, 3);
  EXPECT_EQ(free.gpus, 0);
  for (int i = 0; i < taken; ++i) give_back(free, each);
  EXPECT_EQ(free.gpus, whole.gpus);
  EXPECT_NEAR(free.cpus, whole.cpus, 1e-6);
  EXPECT_EQ(free.memory_bytes, whole.memory_bytes);
  EXPECT_NEAR(free.custom.at("license"), 1, 1e-6);
}

TEST(Resources, DevicesAreFilledOneByOne) {
  std::vector<double> devices{1, 1, 1};
  EXPECT_THAT(take_devices(devices, 0.5), ElementsAre(0));
  EXPECT_THAT(take_devices(devices, 1), ElementsAre(1));
  EXPECT_THAT(take_devices(devices, 0.4), ElementsAre(0));
  EXPECT_THAT(take_devices(devices, 2), IsEmpty());
  EXPECT_THAT(devices, ElementsAre(0, 0, 1));
  give_back_devices(devices, 1, std::vector<int>{1});
  EXPECT_THAT(take_devices(devices, 2), ElementsAre(1, 2));
}

// All ways to put `count` ranks on nodes of the given room, as ranks per node.
void each_way(const std::vector<int>& room, int count, std::vector<int>& so_far, const std::function<void(const std::vector<int>&)>& look) {
  if (so_far.size() == room.size()) {
    if (count == 0) look(so_far);
    return;
  }
  for (int here = 0; here <= std::min(room[so_far.size()], count); ++here) {
    so_far.push_back(here);
    each_way(room, count - here, so_far, look);
    so_far.pop_back();
  }
}

int nodes_used(const std::vector<int>& ranks_of) { return static_cast<int>(std::count_if(ranks_of.begin(), ranks_of.end(), [](int n) { return n > 0; })); }
int most(const std::vector<int>& ranks_of) { return *std::max_element(ranks_of.begin(), ranks_of.end()); }
long squares(const std::vector<int>& ranks_of) {
  long sum = 0;
  for (const int n : ranks_of) sum += long{n} * n;
  return sum;
}

// How many ranks a node takes when they come one by one and each gets its devices.
int room_by_trying(NodeRoom room, const RankNeeds& each) {
  int ranks = 0;
  while (room.takes_ranks && ranks < 8) {
    if (each.resources.gpus > 0 && take_devices(room.devices, each.resources.gpus).empty()) break;
    Resources rest = each.resources;
    rest.gpus = 0;
    if (!take(room.free, rest)) break;
    ++ranks;
  }
  return ranks;
}

TEST(Placement, IsTheBestOfAllWaysOnSmallCases) {
  std::mt19937 random{7};
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>{low, high}(random); };
  for (int round = 0; round < 3'000; ++round) {
    std::vector<NodeRoom> nodes;
    for (int i = draw(1, 4); i > 0; --i) {
      auto made = node("n" + std::to_string(i), draw(0, 6), 0);
      made.devices.assign(static_cast<std::size_t>(draw(0, 3)), 1.0);
      for (auto& free : made.devices) free = draw(0, 4) / 4.0, made.free.gpus += free;
      made.takes_ranks = draw(0, 9) > 0;
      nodes.push_back(made);
    }
    const double shares[]{0, 0.25, 0.3, 0.5, 1, 2};
    const auto each = needs({static_cast<double>(draw(0, 2)), shares[draw(0, 5)]});
    const int count = draw(1, 7);
    std::vector<int> room;
    for (const auto& one : nodes) room.push_back(room_by_trying(one, each));
    std::vector<std::string> preferred;
    for (const auto& one : nodes) {
      if (draw(0, 1) == 1) preferred.push_back(one.name);
    }
    const auto preferred_used = [&](const std::vector<int>& ranks_of) {
      int used = 0;
      for (std::size_t i = 0; i < nodes.size(); ++i) used += ranks_of[i] > 0 && std::count(preferred.begin(), preferred.end(), nodes[i].name) > 0;
      return used;
    };
    int fewest = 100, lowest_most = 100, most_preferred = 0;
    long least_squares = 1'000'000;
    bool any = false;
    std::vector<int> so_far;
    each_way(room, count, so_far, [&](const std::vector<int>& way) {
      any = true;
      if (nodes_used(way) < fewest) most_preferred = 0;
      fewest = std::min(fewest, nodes_used(way));
      if (nodes_used(way) == fewest) most_preferred = std::max(most_preferred, preferred_used(way));
      lowest_most = std::min(lowest_most, most(way));
      least_squares = std::min(least_squares, squares(way));
    });
    const auto usable = std::count_if(room.begin(), room.end(), [](int n) { return n > 0; });
    for (const auto strategy : {PlacementStrategy::Pack, PlacementStrategy::Spread, PlacementStrategy::StrictPack, PlacementStrategy::StrictSpread}) {
      const auto places = place_ranks(nodes, each, count, strategy, preferred);
      const bool should = strategy == PlacementStrategy::StrictPack ? most(room) >= count : strategy == PlacementStrategy::StrictSpread ? usable >= count : any;
      ASSERT_EQ(!places.node_of.empty(), should) << "round " << round << " " << name(strategy) << ": " << places.missing;
      ASSERT_EQ(places.missing.empty(), should) << "round " << round;
      if (!should) continue;
      ASSERT_EQ(places.node_of.size(), static_cast<std::size_t>(count));
      ASSERT_TRUE(std::is_sorted(places.node_of.begin(), places.node_of.end())) << "ranks of a node follow each other";
      std::vector<int> ranks_of(nodes.size(), 0);
      for (const auto i : places.node_of) ++ranks_of.at(i);
      for (std::size_t i = 0; i < nodes.size(); ++i) ASSERT_LE(ranks_of[i], room[i]) << "round " << round;
      if (strategy == PlacementStrategy::Pack) {
        ASSERT_EQ(nodes_used(ranks_of), fewest) << "round " << round;
        ASSERT_EQ(preferred_used(ranks_of), most_preferred) << "round " << round;
      }
      if (strategy == PlacementStrategy::Spread) {
        ASSERT_EQ(squares(ranks_of), least_squares) << "round " << round;
      }
      if (strategy == PlacementStrategy::Spread) {
        ASSERT_EQ(most(ranks_of), lowest_most) << "round " << round;
      }
      if (strategy == PlacementStrategy::StrictPack) {
        ASSERT_EQ(nodes_used(ranks_of), 1);
      }
      if (strategy == PlacementStrategy::StrictSpread) {
        ASSERT_EQ(most(ranks_of), 1);
      }
    }
  }
}

TEST(Placement, AThousandNodesTakeMilliseconds) {
  std::vector<NodeRoom> nodes;
  std::vector<std::string> preferred;
  for (int i = 0; i < 1'000; ++i) {
    nodes.push_back({"node-" + std::to_string(i), {64, 8, 512ULL << 30}, {64, 8, 512ULL << 30}, {{"zone", "a"}}, true, std::vector<double>(8, 1.0)});
    if (i % 2 == 0) preferred.push_back(nodes.back().name);
  }
  for (const auto strategy : {PlacementStrategy::Pack, PlacementStrategy::Spread}) {
    const auto start = std::chrono::steady_clock::now();
    const auto places = place_ranks(nodes, needs({4, 1, 32ULL << 30}, {{"zone", "a"}}), 8'000, strategy, preferred);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(places.node_of.size(), 8'000U);
    EXPECT_LT(took.count(), 100);
    RecordProperty(name(strategy), std::to_string(took.count()) + " ms");
  }
}

}  // namespace
}  // namespace troupe
