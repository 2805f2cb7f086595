#include "../../actors/frame.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <thread>

namespace troupe {
namespace {

using namespace std::chrono_literals;
using detail::decode_message;
using detail::encode_frame;
using detail::frame_header_bytes;
using detail::parse_frame_header;
using testing::HasSubstr;

constexpr std::size_t limit = 1 << 20;

std::vector<LinkMessage> one_of_each() {
  RunRank run;
  run.attempt = 7;
  run.rank = 1;
  run.world_size = 2;
  run.function = "train";
  run.config_json = R"({"lr": 0.5})";
  run.resume_checkpoint = "/some/where";
  run.scaling.placement = Placement::Processes;
  run.data.datasets_to_split = {"train", "extra"};
  run.data.options.equal = SplitEqual::Truncate;
  run.data.per_dataset["train"] = {.equal = SplitEqual::Uneven, .enable_shard_locality = false, .fragment_nodes = {0, -1}, .memory_bytes = 7 << 20, .stall_deadline = std::chrono::milliseconds{5}, .bad_rows = {BadRows::Policy::Skip, 9}, .num_threads = 3};
  run.gpu = 3;
  run.hosts = {{0, 0, 1}, "10.0.0.2", std::string(32, 'k')};
  RunError error{Errc::RankKilled, "gone", 1, 9, std::nullopt, {"a line", ""}, 12, 4711, "a backtrace", "b"};
  return {Hello{"program", 1, 99}, run, CountForStop{7}, StopAfter{7, 12},
          BarrierPassed{7, 3, "bytes", Errc::DeadlinePassed, "rank 1 did not come"}, AbortRank{7, "because", true},
          RankStarted{7, 1, 4711},
          Reported{7, 1, 5, Metrics{{"loss", 0.25}, {"step", 3}, {"best", true}, {"note", "x"}}, "/c", 2},
          CheckpointWritten{7, 1, 4, Errc::StorageUnavailable, "disk full"}, Progressed{7, 1, Progress{1, 2, 3, 4, 0.5, 6.0}}, BarrierReached{7, 1, 3, std::string("a\0b", 3)},
          StopCounted{7, 1, 8}, RankDone{7, 1, 9, {"spare"}}, RankLost{7, 1, error}, SeatOpened{7, 1, 1, 0, "10.0.0.2:4711"}, SeatsKnown{7, {"a:1", "b:2"}}};
}

LinkMessage decode_frame(std::string_view frame) {
  const auto header = parse_frame_header(frame.substr(0, frame_header_bytes), limit);
  if (frame.size() - frame_header_bytes != header.length) throw Failure{Errc::ProtocolError, "cut short"};
  return decode_message(header.type, frame.substr(frame_header_bytes));
}

// Decodes, or says ProtocolError; anything else fails the test.
void expect_harmless(std::string_view frame) {
  try {
    (void)decode_frame(frame);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::ProtocolError);
  }
}

TEST(Frame, BringsEveryMessageBackAsItWas) {
  const auto messages = one_of_each();
  ASSERT_EQ(messages.size(), std::variant_size_v<LinkMessage>);
  for (const auto& message : messages) {
    const auto frame = encode_frame(message, limit);
    const auto back = decode_frame(frame);
    EXPECT_EQ(back.index(), message.index());
    EXPECT_EQ(encode_frame(back, limit), frame) << name_of(message);
  }
  const auto back = std::get<Reported>(decode_frame(encode_frame(messages[7], limit)));
  EXPECT_EQ(back.metrics, std::get<Reported>(messages[7]).metrics);
  EXPECT_EQ(back.checkpoint, "/c");
  EXPECT_EQ(std::get<RunRank>(decode_frame(encode_frame(messages[1], limit))).data, std::get<RunRank>(messages[1]).data);
}

TEST(Frame, KeepsEveryBitOfADouble) {
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), -std::numeric_limits<double>::infinity(), -0.0,
                             std::numeric_limits<double>::denorm_min(),
                             std::bit_cast<double>(std::uint64_t{0x7ff4000000001234})}) {
    const auto back = std::get<Reported>(decode_frame(encode_frame(Reported{1, 0, 0, Metrics{{"x", value}}, {}, 1}, limit)));
    EXPECT_EQ(std::bit_cast<std::uint64_t>(std::get<double>(back.metrics.begin()->value)),
              std::bit_cast<std::uint64_t>(value));
  }
}

TEST(Frame, SurvivesEveryFlippedBitAndEveryCut) {
  for (const auto& message : one_of_each()) {
    const auto frame = encode_frame(message, limit);
    for (std::size_t at = 0; at < frame.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        auto damaged = frame;
        damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
        expect_harmless(damaged);
      }
      expect_harmless(std::string_view(frame).substr(0, at));
      EXPECT_THROW((void)decode_message(static_cast<std::uint16_t>(message.index()),
                                        std::string_view(frame).substr(frame_header_bytes).substr(
                                            0, at < frame.size() - frame_header_bytes ? at : 0)),
                   Failure);
    }
  }
}

TEST(Frame, SurvivesRandomBytes) {
  std::mt19937 random{1};
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes(random() % 200, '\0');
    for (auto& byte : bytes) byte = static_cast<char>(random());
    try {
      (void)decode_message(static_cast<std::uint16_t>(random() % std::variant_size_v<LinkMessage>), bytes);
    } catch (const Failure& failure) {
      ASSERT_EQ(failure.code(), Errc::ProtocolError);
    }
  }
}

TEST(Frame, NamesTypeAndSizeOfOneThatIsTooLong) {
  try {
    (void)encode_frame(AbortRank{1, std::string(2000, 'x')}, 1000);
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::ProtocolError);
    EXPECT_THAT(failure.what(), HasSubstr("a AbortRank of 2013 bytes"));
  }
  auto frame = encode_frame(AbortRank{1, std::string(2000, 'x')}, limit);
  EXPECT_THROW((void)parse_frame_header(frame.substr(0, frame_header_bytes), 1000), Failure);
}

TEST(Frame, RefusesMoreThanItsMessage) {
  const auto frame = encode_frame(CountForStop{1}, limit);
  EXPECT_THROW((void)decode_message(2, frame.substr(frame_header_bytes) + "x"), Failure);
}

/// Two ends over a socket pair, or one end against raw bytes.
class LinkTest : public testing::Test {
 protected:
  struct End {
    std::shared_ptr<Link> link;
    std::vector<LinkMessage> arrived;
    std::optional<Outcome> closed;
  };
  int sockets_[2];
  boost::asio::io_context io_;
  End group_, rank_;

  void SetUp() override { ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets_), 0); }
  void open(End& end, Link::Side side, Hello hello, LinkLimits limits = {}) {
    Link::Handlers handlers;
    handlers.arrived = [&end](LinkMessage message) { end.arrived.push_back(std::move(message)); };
    handlers.closed = [&end](const Outcome& outcome) { end.closed = outcome; };
    end.link = Link::open(io_, sockets_[side == Link::Side::Group ? 0 : 1], side, hello, limits, std::move(handlers));
  }
  template <class Condition>
  void run_until(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + 5s;
    while (!condition() && std::chrono::steady_clock::now() < deadline) {
      io_.restart();
      io_.run_one_for(10ms);
    }
    ASSERT_TRUE(condition());
  }
  void put(std::string_view bytes) {
    ASSERT_EQ(write(sockets_[1], bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
};

TEST_F(LinkTest, CarriesMessagesBothWaysAndClosesWhenTheyAreSent) {
  open(group_, Link::Side::Group, {"p", 0, 5});
  open(rank_, Link::Side::Rank, {"p", 0, 5});
  EXPECT_TRUE(group_.link->send(StopAfter{1, 4}).ok());
  for (std::uint64_t i = 0; i < 1000; ++i) EXPECT_TRUE(rank_.link->send(StopCounted{1, 0, i}).ok());
  rank_.link->finish();
  run_until([&] { return group_.closed && rank_.closed; });
  EXPECT_TRUE(group_.closed->ok()) << group_.closed->text();
  ASSERT_EQ(group_.arrived.size(), 1000u);
  EXPECT_EQ(std::get<StopCounted>(group_.arrived.back()).calls, 999u);
}

TEST_F(LinkTest, RefusesAnotherProgramProcessOrNonce) {
  for (const Hello& other : {Hello{"q", 0, 5}, Hello{"p", 1, 5}, Hello{"p", 0, 6}}) {
    group_ = {};
    open(group_, Link::Side::Group, {"p", 0, 5});
    put(encode_frame(other, limit));
    run_until([&] { return group_.closed.has_value(); });
    EXPECT_EQ(group_.closed->code(), Errc::ProtocolError) << group_.closed->text();
    close(sockets_[1]);
    SetUp();
  }
}

TEST_F(LinkTest, RefusesAMessageBeforeTheHello) {
  open(group_, Link::Side::Group, {"p", 0, 5});
  put(encode_frame(StopCounted{1, 0, 1}, limit));
  run_until([&] { return group_.closed.has_value(); });
  EXPECT_THAT(group_.closed->text(), HasSubstr("StopCounted before its Hello"));
}

TEST_F(LinkTest, RefusesAMessageOfTheOtherDirection) {
  open(group_, Link::Side::Group, {"p", 0, 5});
  put(encode_frame(Hello{"p", 0, 5}, limit) + encode_frame(AbortRank{1, "x"}, limit));
  run_until([&] { return group_.closed.has_value(); });
  EXPECT_THAT(group_.closed->text(), HasSubstr("AbortRank, which it only receives"));
}

TEST_F(LinkTest, EndsWhenThePeerSaysNothing) {
  LinkLimits limits;
  limits.hello_timeout = 20ms;
  open(group_, Link::Side::Group, {"p", 0, 5}, limits);
  run_until([&] { return group_.closed.has_value(); });
  EXPECT_EQ(group_.closed->code(), Errc::DeadlinePassed);
}

TEST_F(LinkTest, SaysThatAFrameWasCutShort) {
  open(group_, Link::Side::Group, {"p", 0, 5});
  put(encode_frame(Hello{"p", 0, 5}, limit) + encode_frame(StopCounted{1, 0, 1}, limit).substr(0, 20));
  run_until([&] { return group_.arrived.empty(); });
  shutdown(sockets_[1], SHUT_WR);
  run_until([&] { return group_.closed.has_value(); });
  EXPECT_EQ(group_.closed->code(), Errc::ProtocolError);
}

TEST_F(LinkTest, DropsProgressAndThenEndsWhenThePeerDoesNotRead) {
  LinkLimits limits;
  limits.droppable_bytes = 1000;
  limits.queue_bytes = 100'000;
  open(rank_, Link::Side::Rank, {"p", 0, 5}, limits);  // says Hello; the other socket never does
  for (int i = 0; i < 100'000; ++i) EXPECT_TRUE(rank_.link->send(Progressed{1, 0, {}}).ok());
  io_.run_for(20ms);
  EXPECT_FALSE(rank_.closed);
  for (int i = 0; i < 100; ++i) (void)rank_.link->send(Reported{1, 0, 0, {{"text", std::string(2000, 'x')}}, {}, 1});
  run_until([&] { return rank_.closed.has_value(); });
  EXPECT_THAT(rank_.closed->text(), HasSubstr("does not read"));
}

}  // namespace
}  // namespace troupe
