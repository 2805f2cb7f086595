#include "../fuzz/node_targets.hpp"

#include "../../actors/cluster/node_messages.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace troupe::detail {
namespace {

using testing::HasSubstr;

Packet packet_of(const std::string& seed) {
  Packet packet;
  std::memcpy(&packet.type, seed.data(), 2);
  packet.bytes = seed.substr(2);
  return packet;
}

TEST(NodeMessages, ComeBackAsTheyWere) {
  const auto seeds = fuzz::node_message_seeds();
  ASSERT_EQ(seeds.size(), std::variant_size_v<NodeMessage>);
  for (std::size_t type = 0; type < seeds.size(); ++type) {
    const auto packet = packet_of(seeds[type]);
    ASSERT_EQ(packet.type, type);
    const auto message = decode(packet, is_from_head(packet.type));
    EXPECT_EQ(message.index(), type);
    EXPECT_EQ(encode(message).bytes, packet.bytes) << node_type_name(packet.type);
  }
}

TEST(NodeMessages, BringEveryFieldOfABeat) {
  const auto seed = packet_of(fuzz::node_message_seeds()[6]);
  const auto beat = std::get<RankSeen>(decode(seed, false)).beat;
  EXPECT_EQ(beat.progress, 7u);
  EXPECT_EQ(beat.collectives, 5u);
  EXPECT_EQ(beat.stop_calls, 3u);
  EXPECT_EQ(beat.waiting_in, WaitingIn::Collective);
  EXPECT_EQ(beat.waited.count(), 4);
  EXPECT_TRUE(beat.is_stopped);
}

TEST(NodeMessages, GoOneWayOnly) {
  for (const auto& seed : fuzz::node_message_seeds()) {
    const auto packet = packet_of(seed);
    if (is_from_head(packet.type) && is_from_node(packet.type)) {  // both
      EXPECT_NO_THROW((void)decode(packet, true));
      EXPECT_NO_THROW((void)decode(packet, false));
      continue;
    }
    try {
      (void)decode(packet, !is_from_head(packet.type));
      FAIL() << node_type_name(packet.type);
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::ProtocolError);
      EXPECT_THAT(failure.what(), HasSubstr(node_type_name(packet.type)));
    }
  }
}

TEST(NodeMessages, AreRefusedWhenOfUnknownTypeCutOrTooLong) {
  EXPECT_THROW((void)decode({999, ""}, false), Failure);
  EXPECT_THROW((void)decode({999, ""}, true), Failure);
  for (const auto& seed : fuzz::node_message_seeds()) {
    auto packet = packet_of(seed);
    const auto whole = packet.bytes;
    for (std::size_t length = 0; length < whole.size(); ++length) {
      packet.bytes = whole.substr(0, length);
      EXPECT_THROW((void)decode(packet, is_from_head(packet.type)), Failure) << node_type_name(packet.type) << " cut to " << length;
    }
    packet.bytes = whole + "x";
    EXPECT_THROW((void)decode(packet, is_from_head(packet.type)), Failure) << node_type_name(packet.type);
  }
}

TEST(NodeMessages, SurviveDamage) {
  const auto seeds = fuzz::node_message_seeds();
  std::mt19937 draw{11};
  for (int round = 0; round < 20'000; ++round) {
    auto text = seeds[draw() % seeds.size()];
    for (unsigned flips = 1 + draw() % 4; flips > 0; --flips) text[draw() % text.size()] ^= static_cast<char>(1U << draw() % 8);
    if (round % 5 == 0) text.resize(draw() % text.size());
    EXPECT_EQ(fuzz::node_message(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()), 0);
  }
}

}  // namespace
}  // namespace troupe::detail
