// Users' actors on the nodes of a cluster, reached by name: a head and nodes of one process, each with an actor system of its own.
#include <troupe/cluster.hpp>
#include <troupe/cluster_mail.hpp>
#include <troupe/node.hpp>
#include <troupe/trainer.hpp>

#include <caf/all.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

struct Sum {
  std::vector<double> numbers;
};
struct Total {
  double value = 0;
};
struct Note {
  std::uint64_t number = 0;
};

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(Sum)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(Total)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(Note)

template <class Archive>
void serialize(Archive& ar, Sum& m) {
  ar(m.numbers);
}
template <class Archive>
void serialize(Archive& ar, Total& m) {
  ar(m.value);
}
template <class Archive>
void serialize(Archive& ar, Note& m) {
  ar(m.number);
}

namespace troupe {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

MailTypes types() {
  MailTypes all;
  all.add<Sum>("Sum").add<Total>("Total").add<Note>("Note");
  return all;
}

/// A program of the cluster.
struct Program {
  struct Config : caf::actor_system_config {
    Config() { register_types(*this); }
  } config;
  caf::actor_system system{config};
  std::shared_ptr<ClusterMail> mail = ClusterMail::make(system, types());
};

caf::behavior adder() {
  return {[](const Sum& sum) { return Total{std::accumulate(sum.numbers.begin(), sum.numbers.end(), 0.0)}; },
          [](const Note&) {}};
}

class ClusterMailTest : public testing::Test {
 protected:
  Program head_, b_, c_;
  std::shared_ptr<Cluster> cluster_ = Cluster::open({.listen = "127.0.0.1:0", .security = {}, .mail = head_.mail});
  std::unique_ptr<NodeAgent> node_b_ = join("b", b_), node_c_ = join("c", c_);

  void SetUp() override { ASSERT_TRUE(cluster_->wait_for_nodes(2, 10s)); }

  std::unique_ptr<NodeAgent> join(const std::string& name, Program& program) {
    NodeOptions options;
    options.join = cluster_->address();
    options.name = name;
    options.mail = program.mail;
    return NodeAgent::start(options);
  }

  /// What the actor answers, or the error in words.
  template <class T>
  static std::string ask(Program& from, const caf::actor& to, T question) {
    caf::scoped_actor self{from.system};
    std::string answer = "no answer";
    self->request(to, 10s, std::move(question))
        .receive([&](const Total& total) { answer = std::to_string(total.value); }, [&](const caf::error& error) { answer = from.system.render(error); });
    return answer;
  }
};

TEST_F(ClusterMailTest, ActorsOfNodesAndOfTheHeadAnswerByName) {
  b_.mail->publish("adder", b_.system.spawn(adder));
  head_.mail->publish("adder", head_.system.spawn(adder));
  EXPECT_EQ(ask(head_, head_.mail->find("b", "adder"), Sum{{1, 2, 4}}), "7.000000");
  EXPECT_EQ(ask(b_, b_.mail->find("", "adder"), Sum{{1, 1}}), "2.000000");
  EXPECT_EQ(ask(c_, c_.mail->find("b", "adder"), Sum{{3, 5}}), "8.000000") << "by the head, from node to node";
}

TEST_F(ClusterMailTest, DoublesKeepEveryValue) {
  b_.mail->publish("adder", b_.system.spawn(adder));
  EXPECT_EQ(ask(head_, head_.mail->find("b", "adder"), Sum{{std::numeric_limits<double>::infinity(), 1}}), "inf");
  EXPECT_THAT(ask(head_, head_.mail->find("b", "adder"), Sum{{std::nan("")}}), HasSubstr("nan"));
}

TEST_F(ClusterMailTest, MessagesArriveOnceAndInOrder) {
  constexpr std::uint64_t count = 20'000;
  caf::scoped_actor receiver{b_.system}, sender{head_.system};
  b_.mail->publish("notes", receiver);
  const auto proxy = head_.mail->find("b", "notes");
  for (std::uint64_t i = 0; i < count; ++i) sender->send(proxy, Note{i});
  for (std::uint64_t i = 0; i < count; ++i) {
    receiver->receive([&](const Note& note) { ASSERT_EQ(note.number, i); }, caf::after(10s) >> [&] { FAIL() << "note " << i << " did not come"; });
  }
}

TEST_F(ClusterMailTest, WhatIsNotThereIsNamed) {
  EXPECT_THAT(ask(head_, head_.mail->find("b", "subtractor"), Sum{}), HasSubstr("there is no actor 'subtractor' on node b"));
  EXPECT_THAT(ask(head_, head_.mail->find("z", "adder"), Sum{}), HasSubstr("there is no node z in this cluster"));
  EXPECT_THAT(ask(c_, c_.mail->find("z", "adder"), Sum{}), HasSubstr("there is no node z in this cluster"));
  b_.mail->publish("adder", b_.system.spawn(adder));
  EXPECT_EQ(ask(head_, head_.mail->find("b", "adder"), Sum{{1}}), "1.000000");
  b_.mail->publish("adder", nullptr);
  EXPECT_THAT(ask(head_, head_.mail->find("b", "adder"), Sum{{1}}), HasSubstr("there is no actor 'adder'"));
}

TEST_F(ClusterMailTest, AnActorThatFailsOrANodeThatGoesEndsTheRequest) {
  b_.mail->publish("failing", b_.system.spawn([]() -> caf::behavior { return {[](const Sum&) -> caf::result<Total> { return caf::sec::runtime_error; }}; }));
  EXPECT_THAT(ask(head_, head_.mail->find("b", "failing"), Sum{}), HasSubstr("failing"));
  b_.mail->publish("silent", b_.system.spawn([](caf::event_based_actor* self) -> caf::behavior {
    return {[self](const Sum&) { return self->make_response_promise<Total>(); }};
  }));
  caf::scoped_actor self{head_.system};
  const auto asked = std::chrono::steady_clock::now();
  auto request = self->request(head_.mail->find("b", "silent"), 10s, Sum{});
  node_b_.reset();
  request.receive([](const Total&) { FAIL() << "it is silent"; }, [&](const caf::error& error) { EXPECT_THAT(head_.system.render(error), HasSubstr("node b")); });
  EXPECT_LT(std::chrono::steady_clock::now() - asked, 5s);
}

TEST_F(ClusterMailTest, ATypeThatIsNotRegisteredThereIsRefused) {
  MailTypes fewer;
  fewer.add<Total>("Total");
  Program d;
  d.mail = ClusterMail::make(d.system, fewer);
  const auto node = join("d", d);
  ASSERT_TRUE(cluster_->wait_for_nodes(3, 10s));
  d.mail->publish("adder", d.system.spawn(adder));
  EXPECT_THAT(ask(head_, head_.mail->find("d", "adder"), Sum{{1}}), HasSubstr("no message type 'Sum' is registered there"));
}

}  // namespace
}  // namespace troupe
