#include "cluster/operator.hpp"

#include "../fuzz/operator_targets.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include <random>

namespace troupe::detail {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class FakeView final : public ClusterView {
 public:
  ClusterStatus status() const override { return now; }
  void stop(const std::string& run, bool at_once) override {
    if (run != "mrpc") throw Failure{Errc::NotFound, "there is no run '" + run + "'; there is mrpc"};
    stopped.push_back(run + (at_once ? " now" : ""));
  }
  void drain(const std::string& node) override { drained.push_back(node); }
  LogRing& logs() override { return ring; }

  ClusterStatus now;
  std::vector<std::string> stopped, drained;
  LogRing ring;
};

std::vector<std::string> texts(const LogPage& page) {
  std::vector<std::string> all;
  for (const auto& line : page.lines) all.push_back(line.text);
  return all;
}

OperatorReply ask(ClusterView& view, const OperatorRequest& request) {
  const auto packet = answer_operator(view, encode(request));
  if (!packet) throw std::runtime_error("no answer");
  return decode_operator_reply(*packet);
}

ClusterStatus a_status() {
  ClusterStatus status;
  status.up_seconds = 12.5;
  status.nodes.push_back({"b", "10.0.0.2", NodeState::Draining, {8, 2, 64, {{"license", 1}}}, {4, 1.5, 32, {}}, {{"zone", "a"}}, 77, 0.25, {"mrpc/0"}});
  status.runs.push_back({"mrpc", "/data/mrpc", "running", 3, 2, 1, {"b", "b"}, 120, 4.5, R"({"loss":0.5})", ""});
  return status;
}

TEST(OperatorProtocol, StatusArrivesAsItIs) {
  FakeView view;
  view.now = a_status();
  const auto reply = ask(view, {7, StatusOrder{}});
  EXPECT_EQ(reply.id, 7U);
  const auto& status = std::get<StatusAnswer>(reply.answer).status;
  EXPECT_EQ(to_json(status), to_json(view.now));
  EXPECT_EQ(status.nodes.at(0).state, NodeState::Draining);
  EXPECT_EQ(status.nodes.at(0).total.custom.at("license"), 1);
  EXPECT_EQ(status.runs.at(0).last_report_json, R"({"loss":0.5})");
}

TEST(OperatorProtocol, StopAndDrainReachTheViewOrSayWhyNot) {
  FakeView view;
  EXPECT_TRUE(std::holds_alternative<DoneAnswer>(ask(view, {1, StopOrder{"mrpc", true}}).answer));
  EXPECT_TRUE(std::holds_alternative<DoneAnswer>(ask(view, {2, DrainOrder{"b"}}).answer));
  EXPECT_THAT(view.stopped, ElementsAre("mrpc now"));
  EXPECT_THAT(view.drained, ElementsAre("b"));
  const auto refused = std::get<RefusedAnswer>(ask(view, {3, StopOrder{"nli", false}}).answer);
  EXPECT_EQ(refused.code, Errc::NotFound);
  EXPECT_EQ(refused.text, "there is no run 'nli'; there is mrpc");
}

TEST(OperatorProtocol, WhatNoOperatorSendsIsRefused) {
  FakeView view;
  const auto text_of = [&](std::uint16_t type, const std::string& bytes) {
    const auto packet = answer_operator(view, {type, bytes});
    return std::get<RefusedAnswer>(decode_operator_reply(*packet).answer).text;
  };
  EXPECT_THAT(text_of(3, "{}"), HasSubstr("type 3"));
  EXPECT_THAT(text_of(0x8100, "{}"), HasSubstr("which an operator does not send"));
  EXPECT_THAT(text_of(0x8000, "[1]"), HasSubstr("is no JSON object"));
  EXPECT_THAT(text_of(0x8000, "{"), HasSubstr("is no JSON object"));
  EXPECT_THAT(text_of(0x8000, R"({"id":-1})"), HasSubstr("'id'"));
  EXPECT_THAT(text_of(0x8000, R"({"id":1,"shell":"x"})"), HasSubstr("unknown key 'shell'"));
  EXPECT_THAT(text_of(0x8002, R"({"id":1,"run":5,"now":false})"), HasSubstr("'run'"));
  EXPECT_THAT(text_of(0x8001, R"({"id":1,"run":"","after":0,"follow":false,"rank":99999999999})"), HasSubstr("'rank'"));
  EXPECT_THAT(text_of(0x8000, std::string(operator_request_bytes, '[')), HasSubstr("is no JSON object"));
  EXPECT_THAT(text_of(0x8000, std::string(operator_request_bytes + 1, ' ')), HasSubstr("at most 4096"));
  EXPECT_THAT(view.stopped, IsEmpty());
}

TEST(OperatorProtocol, ChangedBytesNeverDoMoreThanTheirRequest) {
  std::mt19937 random{3};
  for (const auto& seed : fuzz::operator_message_seeds()) {
    for (int round = 0; round < 5'000; ++round) {
      auto bytes = seed;
      for (int change = 0; change < 3; ++change) bytes[random() % bytes.size()] = static_cast<char>(random());
      (void)fuzz::operator_message(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());  // traps
    }
  }
}

TEST(OperatorProtocol, DeepJsonDoesNotExhaustTheStack) {
  const auto deep = R"({"id":1,"status":{"up_seconds":1,"nodes":[],"runs":[{"last_report":)" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}]}}";
  EXPECT_THROW((void)decode_operator_reply({0x8100, deep}), Failure);
}

TEST(LogRing, KeepsTheLastLinesOfEveryRank) {
  LogRing ring{{.lines_per_rank = 3, .line_bytes = 5}};
  for (int i = 1; i <= 5; ++i) ring.add("mrpc", 0, "a", "line" + std::to_string(i) + (i == 5 ? " and more" : ""));
  ring.add("mrpc", 1, "b", "other");
  ring.add("nli", 0, "b", "third");
  EXPECT_THAT(texts(ring.read({"mrpc", {}}, 0, 100, 1 << 20)), ElementsAre("line3", "line4", "line5 …", "other"));
  EXPECT_THAT(texts(ring.read({"mrpc", 1}, 0, 100, 1 << 20)), ElementsAre("other"));
  EXPECT_THAT(texts(ring.read({}, 0, 100, 1 << 20, 2)), ElementsAre("other", "third"));
  EXPECT_THAT(texts(ring.read({"mrpc", {}}, 0, 100, 1 << 20, 2)), ElementsAre("line5 …", "other"));
}

TEST(LogRing, PagesAndCountsWhatWentMeanwhile) {
  LogRing ring{{.lines_per_rank = 10}};
  for (int i = 0; i < 10; ++i) ring.add("r", 0, "a", std::to_string(i));
  const auto first = ring.read({}, 0, 4, 1 << 20);
  EXPECT_THAT(texts(first), ElementsAre("0", "1", "2", "3"));
  EXPECT_EQ(first.next, 4U);
  for (int i = 10; i < 16; ++i) ring.add("r", 0, "a", std::to_string(i));  // 0 to 5 are gone
  const auto second = ring.read({}, first.next, 4, 1 << 20);
  EXPECT_THAT(texts(second), ElementsAre("6", "7", "8", "9"));
  EXPECT_EQ(second.dropped, 2U);
  const auto rest = ring.read({}, second.next, 100, 1 << 20);
  EXPECT_THAT(rest.lines, SizeIs(6));
  EXPECT_EQ(rest.dropped, 0U);
  EXPECT_THAT(ring.read({}, rest.next, 100, 1 << 20).lines, IsEmpty());
}

TEST(LogRing, IsBoundedInAll) {
  LogRing ring{{.lines_per_rank = 1'000, .total_bytes = 100'000}};
  for (int i = 0; i < 5'000; ++i) ring.add("run", i % 50, "a", std::string(100, 'x'));
  const auto page = ring.read({}, 0, 100'000, 1 << 30);
  EXPECT_LE(page.lines.size() * 228, 100'000U);
  EXPECT_GT(page.lines.size(), 400U);
  EXPECT_EQ(page.lines.back().number, 5'000U);
}

struct Wire {
  std::vector<OperatorReply> replies;
  OperatorSession::Send send() {
    return [this](Packet packet) {
      replies.push_back(decode_operator_reply(packet));
      return Outcome{};
    };
  }
};

TEST(OperatorSession, AFollowerGetsLinesWhenTheyCome) {
  FakeView view;
  Wire wire;
  const auto session = OperatorSession::make(view, wire.send());
  session->arrived(encode(OperatorRequest{1, LogsOrder{{"mrpc", 1}, 0, {}, true}}));
  view.ring.add("mrpc", 0, "a", "of another rank");
  view.ring.add("nli", 1, "a", "of another run");
  EXPECT_THAT(wire.replies, IsEmpty());
  view.ring.add("mrpc", 1, "a", "wanted");
  ASSERT_THAT(wire.replies, SizeIs(1));
  const auto& page = std::get<LogsAnswer>(wire.replies[0].answer).page;
  EXPECT_THAT(texts(page), ElementsAre("wanted"));
  view.ring.add("mrpc", 1, "a", "not asked for");
  EXPECT_THAT(wire.replies, SizeIs(1));
  session->arrived(encode(OperatorRequest{2, LogsOrder{{"mrpc", 1}, page.next, {}, true}}));
  ASSERT_THAT(wire.replies, SizeIs(2));
  EXPECT_THAT(texts(std::get<LogsAnswer>(wire.replies[1].answer).page), ElementsAre("not asked for"));
}

TEST(OperatorSession, ClosedOnesHearNothingAndWaitingIsBounded) {
  FakeView view;
  Wire wire;
  auto session = OperatorSession::make(view, wire.send());
  for (std::uint64_t id = 1; id <= OperatorSession::max_waiting + 1; ++id) session->arrived(encode(OperatorRequest{id, LogsOrder{{}, 0, {}, true}}));
  ASSERT_THAT(wire.replies, SizeIs(1));
  EXPECT_THAT(std::get<RefusedAnswer>(wire.replies[0].answer).text, HasSubstr("too many"));
  session->close();
  view.ring.add("mrpc", 1, "a", "line");
  EXPECT_THAT(wire.replies, SizeIs(1));
  session->arrived(encode(OperatorRequest{99, LogsOrder{{}, 1, {}, true}}));
  session.reset();
  view.ring.add("mrpc", 1, "a", "line");
  EXPECT_THAT(wire.replies, SizeIs(1));
}

}  // namespace
}  // namespace troupe::detail
