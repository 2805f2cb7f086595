#include "link_fixtures.hpp"
#include "raw_client.hpp"
#include "tcp_proxy.hpp"

#include <gmock/gmock.h>

#include <random>

namespace troupe::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string text_of(int i) { return std::to_string(i) + std::string(static_cast<std::size_t>(i * 37 % 300), 'x'); }

void send_all(SecureLink& link, int count) {
  for (int i = 0; i < count; ++i) ASSERT_TRUE(link.send({static_cast<std::uint16_t>(i % 5), text_of(i)}).ok());
}

void expect_all(const Heard& heard, int count) {
  ASSERT_EQ(heard.packets.size(), static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    ASSERT_EQ(heard.packets[static_cast<std::size_t>(i)].bytes, text_of(i)) << i;
    ASSERT_EQ(heard.packets[static_cast<std::size_t>(i)].type, i % 5);
  }
}

/// Both kinds of connection.
class Links : public ::testing::TestWithParam<bool> {
 protected:
  [[nodiscard]] ClusterSecurity as(const std::string& name) const { return GetParam() ? cluster().as(name) : plain(name); }
  static TestCluster& cluster() {
    static TestCluster made;
    return made;
  }
};

TEST_P(Links, CarryPacketsBothWaysInOrder) {
  TestHead head{as("head")};
  TestNode node{head.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open()) << node.heard->outcome->text();
  EXPECT_EQ(*node.heard->peer, (ClusterIdentity{GetParam() ? "test" : "", ClusterRole::Head, "head"}));
  EXPECT_EQ(node.heard->address, "127.0.0.1");
  ASSERT_TRUE(head.heard()->wait_open());
  EXPECT_EQ(*head.heard()->peer, (ClusterIdentity{GetParam() ? "test" : "", ClusterRole::Node, "node"}));
  EXPECT_EQ(node.link->local_address(), "127.0.0.1");
  send_all(*node.link, 500);
  send_all(*head.link(), 500);
  ASSERT_TRUE(node.heard->wait_packets(500));
  ASSERT_TRUE(head.heard()->wait_packets(500));
  expect_all(*node.heard, 500);
  expect_all(*head.heard(), 500);
}

TEST_P(Links, FinishDeliversWhatWasSentAndEndsBothSidesWell) {
  TestHead head{as("head")};
  TestNode node{head.address(), as("node")};
  send_all(*node.link, 300);  // before it is open
  node.link->finish();
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_TRUE(node.heard->outcome->ok()) << node.heard->outcome->text();
  ASSERT_TRUE(head.heard()->wait_closed());
  EXPECT_TRUE(head.heard()->outcome->ok()) << head.heard()->outcome->text();
  expect_all(*head.heard(), 300);
}

TEST_P(Links, TheHeadMayFinishToo) {
  TestHead head{as("head")};
  TestNode node{head.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(head.heard()->wait_open());
  send_all(*head.link(), 300);
  head.link()->finish();
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_TRUE(node.heard->outcome->ok());
  expect_all(*node.heard, 300);
  ASSERT_TRUE(head.heard()->wait_closed());
  EXPECT_TRUE(head.heard()->outcome->ok());
}

TEST_P(Links, ClosingIsToldToThePeer) {
  TestHead head{as("head")};
  TestNode node{head.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(head.heard()->wait_open());
  node.link->close();
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_TRUE(node.heard->outcome->ok());
  ASSERT_TRUE(head.heard()->wait_closed(1s));
  EXPECT_EQ(head.heard()->outcome->code(), Errc::Cancelled);
  EXPECT_THAT(head.heard()->outcome->text(), HasSubstr("node 'node' closed the link"));
}

TEST_P(Links, LongPacketsArriveAndTooLongOnesAreRefused) {
  SecureLinkOptions options;
  options.packet_bytes = 3 << 20;
  TestHead head{as("head"), {.link = options}};
  TestNode node{head.address(), as("node"), options};
  const std::string longest(options.packet_bytes, 'a');
  EXPECT_EQ(node.link->send({1, longest + "a"}).code(), Errc::InvalidArgument);
  EXPECT_EQ(node.link->send({SecureLink::first_own_type, "x"}).code(), Errc::InvalidArgument);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(node.link->send({1, longest}).ok());
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(eventually([&] { return head.num_accepted() == 1; }));
  ASSERT_TRUE(head.heard()->wait_packets(5));
  for (const auto& packet : head.heard()->packets) EXPECT_TRUE(packet.bytes == longest);
}

TEST_P(Links, APeerThatDoesNotReadClosesTheLink) {
  SecureLinkOptions options;
  options.queue_bytes = 1 << 20;
  TestHead head{as("head"), {.link = options}};
  TcpProxy proxy{head.listener->port(), [](int) { return TcpProxy::never; }};
  TestNode node{proxy.address(), as("node"), options};
  ASSERT_TRUE(node.heard->wait_open());
  proxy.stalled_before = 1000;
  for (int i = 0; i < 20; ++i) (void)node.link->send({1, std::string(100'000, 'x')});
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_EQ(node.heard->outcome->code(), Errc::ProtocolError);
  EXPECT_THAT(node.heard->outcome->text(), HasSubstr("head 'head' does not read: more than 1048576 bytes wait"));
}

TEST_P(Links, RefusalsComeInTheListenersWords) {
  TestHead head{as("head")};
  head.refuse_with = "there is a node 'node' already";
  const auto outcome = outcome_of(head.address(), as("node"));
  EXPECT_EQ(outcome.code(), Errc::AlreadyExists);
  EXPECT_THAT(outcome.text(), AllOf(HasSubstr(head.address()), HasSubstr("refused: there is a node 'node' already")));
  EXPECT_EQ(head.listener->refused().other, 1U);
}

TEST_P(Links, ANodeMayStartBeforeItsHead) {
  std::uint16_t port = 0;
  {
    TestHead gone{as("head")};
    port = gone.listener->port();
  }
  TestNode node{"127.0.0.1:" + std::to_string(port), as("node")};
  std::this_thread::sleep_for(300ms);
  SecureListener::Options options;
  options.listen = "127.0.0.1:" + std::to_string(port);
  TestHead head{as("head"), options};
  ASSERT_TRUE(node.heard->wait_open()) << node.heard->outcome->text();
}

TEST_P(Links, AHeadThatIsNotThereIsNamedAfterTheSilenceLimit) {
  SecureLinkOptions options;
  options.silence = 300ms;
  const auto begin = std::chrono::steady_clock::now();
  const auto outcome = outcome_of("127.0.0.1:1", as("node"), options);
  EXPECT_EQ(outcome.code(), Errc::DeadlinePassed);
  EXPECT_THAT(outcome.text(), HasSubstr("cannot reach 127.0.0.1:1: Connection refused"));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 300ms);
}

TEST_P(Links, AStormOfNodesGetsInThoughFewHandshakesAreAllowedAtOnce) {
  constexpr std::size_t num_nodes = 300;
  SecureListener::Options options;
  options.max_handshakes = 8;
  TestHead head{as("head"), options};
  detail::IoThread io;
  SecureLinkOptions patient;
  patient.silence = 20s;
  std::vector<std::shared_ptr<SecureLink>> links;
  std::vector<std::shared_ptr<Heard>> heards;
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < num_nodes; ++i) {
    heards.push_back(std::make_shared<Heard>());
    links.push_back(SecureLink::connect(io.io(), head.address(), ClusterRole::Node, ClusterRole::Head, as("node"), patient, heards.back()->handlers()));
  }
  for (const auto& heard : heards) ASSERT_TRUE(heard->wait_open()) << heard->outcome->text();
  RecordProperty("ms", static_cast<int>((std::chrono::steady_clock::now() - begin) / 1ms));
  EXPECT_EQ(head.num_accepted(), num_nodes);
  io.stop();
}

// ---- connections that break -------------------------------------------------------------------------------------------------------------------

/// 40 packets each way over a connection that is cut after `cut` bytes, and a second one after 2·cut.
void expect_survives(const ClusterSecurity& head_security, const ClusterSecurity& node_security, std::size_t cut) {
  SCOPED_TRACE("cut after " + std::to_string(cut) + " bytes");
  TestHead head{head_security};
  TcpProxy proxy{head.listener->port(), [&](int number) { return number == 0 ? cut : number == 1 ? 2 * cut : TcpProxy::never; }};
  TestNode node{proxy.address(), node_security};
  send_all(*node.link, 40);
  ASSERT_TRUE(node.heard->wait_open()) << node.heard->outcome->text();
  ASSERT_TRUE(eventually([&] { return head.num_accepted() >= 1; }));
  // A Welcome that was lost must not make two links of one.
  ASSERT_EQ(head.num_accepted(), 1U);
  send_all(*head.link(), 40);
  ASSERT_TRUE(head.heard()->wait_packets(40));
  ASSERT_TRUE(node.heard->wait_packets(40));
  node.link->finish();
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_TRUE(node.heard->outcome->ok()) << node.heard->outcome->text();
  ASSERT_TRUE(head.heard()->wait_closed());
  EXPECT_TRUE(head.heard()->outcome->ok()) << head.heard()->outcome->text();
  expect_all(*head.heard(), 40);
  expect_all(*node.heard, 40);
  // A cut in the goodbye is not followed by another connection for packets.
  EXPECT_LE(node.heard->interrupted - node.heard->resumed, 1);
}

TEST_P(Links, PacketsArriveOnceAndInOrderWhereverTheConnectionIsCut) {
  const std::size_t last = GetParam() ? 16'000 : 14'000, step = GetParam() ? 131 : 61;
  for (std::size_t cut = 0; cut < last && !HasFatalFailure(); cut += cut < 1000 && !GetParam() ? 7 : step) expect_survives(as("head"), as("node"), cut);
}

TEST_P(Links, ManyCutsLoseNothing) {
  TestHead head{as("head")};
  std::mt19937 draw{7};
  TcpProxy proxy{head.listener->port(), [&](int number) { return number < 40 ? 4'000 + draw() % 8'000 : TcpProxy::never; }};
  TestNode node{proxy.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(head.heard()->wait_open());
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(node.link->send({static_cast<std::uint16_t>(i % 5), text_of(i)}).ok());
    ASSERT_TRUE(head.link()->send({static_cast<std::uint16_t>(i % 5), text_of(i)}).ok());
    if (i % 50 == 0) std::this_thread::sleep_for(2ms);
  }
  ASSERT_TRUE(head.heard()->wait_packets(1000)) << head.heard()->packets.size();
  ASSERT_TRUE(node.heard->wait_packets(1000)) << node.heard->packets.size();
  expect_all(*head.heard(), 1000);
  expect_all(*node.heard, 1000);
  EXPECT_GE(proxy.num_connections(), 10);
}

TEST_P(Links, ASlowNetworkIsNoSilence) {
  TestHead head{as("head")};
  TcpProxy proxy{head.listener->port(), [](int) { return TcpProxy::never; }};
  proxy.delay_ms = 100;
  TestNode node{proxy.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  send_all(*node.link, 100);
  ASSERT_TRUE(head.heard()->wait_packets(100));
  std::this_thread::sleep_for(2s);
  EXPECT_EQ(proxy.num_connections(), 1);
  EXPECT_FALSE(node.heard->outcome);
}

TEST_P(Links, ASilentConnectionIsMadeAgainBeforeTheLimit) {
  TestHead head{as("head")};
  TcpProxy proxy{head.listener->port(), [](int) { return TcpProxy::never; }};
  TestNode node{proxy.address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(head.heard()->wait_open());
  proxy.stalled_before = 1;
  send_all(*node.link, 20);
  ASSERT_TRUE(head.heard()->wait_packets(20, 3s));
  EXPECT_EQ(proxy.num_connections(), 2);
  EXPECT_THAT(node.heard->why, HasSubstr("nothing came for 0."));
  ASSERT_TRUE(node.heard->wait([](const Heard& h) { return h.resumed == 1; }));
  expect_all(*head.heard(), 20);
}

TEST_P(Links, ALongerSilenceEndsBothSidesAndNamesThePeer) {
  SecureLinkOptions options;
  options.silence = 800ms;
  options.beat_every = 100ms;
  TestHead head{as("head"), {.link = options}};
  TcpProxy proxy{head.listener->port(), [](int) { return TcpProxy::never; }};
  TestNode node{proxy.address(), as("node"), options};
  ASSERT_TRUE(node.heard->wait_open());
  ASSERT_TRUE(head.heard()->wait_open());
  proxy.stalled_before = 1'000'000;
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(node.heard->wait_closed(4s));
  ASSERT_TRUE(head.heard()->wait_closed(4s));
  const auto took = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(took, 600ms);
  EXPECT_LE(took, 4s);
  EXPECT_EQ(node.heard->outcome->code(), Errc::DeadlinePassed);
  EXPECT_EQ(head.heard()->outcome->code(), Errc::DeadlinePassed);
  EXPECT_THAT(node.heard->outcome->text(), HasSubstr("head 'head' was not heard of for "));
  EXPECT_THAT(head.heard()->outcome->text(), HasSubstr("node 'node' was not heard of for "));
  EXPECT_EQ(node.heard->num_closed, 1);
}

TEST_P(Links, AHeadThatWasStartedAgainDoesNotKnowOldLinks) {
  auto first = std::make_unique<TestHead>(as("head"));
  SecureListener::Options options;
  options.listen = first->address();
  TestNode node{first->address(), as("node")};
  ASSERT_TRUE(node.heard->wait_open());
  first.reset();
  TestHead second{as("head"), options};
  ASSERT_TRUE(node.heard->wait_closed());
  EXPECT_EQ(node.heard->outcome->code(), Errc::DeadlinePassed);
  EXPECT_THAT(node.heard->outcome->text(), HasSubstr("started again"));
  EXPECT_EQ(second.num_accepted(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Links, ::testing::Bool(), [](const auto& param) { return param.param ? "Tls" : "Plain"; });

// ---- peers that count wrongly ------------------------------------------------------------------------------------------------------------------

/// A node that is let in and then sends the packets that it likes.
class OddNode {
 public:
  explicit OddNode(std::uint16_t port) : client_(port) {
    const std::string nonce(32, 'n');
    client_.send(detail::link_frame(detail::LinkType::Greeting, nonce));
    (void)client_.receive(5s);
    detail::LinkHello hello;
    hello.who = {"", ClusterRole::Node, "odd"};
    client_.send(detail::link_frame(detail::LinkType::Hello, encode(hello)));
  }
  void send(std::uint64_t number, const std::string& text) {
    std::string frame;
    detail::append_frame(frame, 1, number, text);
    client_.send(frame);
  }
  void acknowledge(std::uint64_t number) { client_.send(detail::link_frame(detail::LinkType::Beat, detail::encode_number(number))); }

 private:
  RawClient client_;
};

TEST(LinkNumbers, APacketThatComesAgainIsNotDeliveredAgain) {
  TestHead head{plain("head")};
  OddNode node{head.listener->port()};
  for (const std::uint64_t number : {1, 2, 1, 2, 3}) node.send(number, std::to_string(number));
  ASSERT_TRUE(eventually([&] { return head.num_accepted() == 1; }));
  ASSERT_TRUE(head.heard()->wait([](const Heard& h) { return !h.packets.empty() && h.packets.back().bytes == "3"; }));
  EXPECT_EQ(head.heard()->packets.size(), 3U);
}

TEST(LinkNumbers, AGapEndsTheLink) {
  TestHead head{plain("head")};
  OddNode node{head.listener->port()};
  node.send(1, "1");
  node.send(3, "3");
  ASSERT_TRUE(eventually([&] { return head.num_accepted() == 1; }));
  ASSERT_TRUE(head.heard()->wait_closed());
  EXPECT_EQ(head.heard()->outcome->code(), Errc::ProtocolError);
  EXPECT_THAT(head.heard()->outcome->text(), HasSubstr("node 'odd': packets were left out between number 1 and the next"));
}

TEST(LinkNumbers, AcknowledgingWhatWasNeverSentEndsTheLink) {
  TestHead head{plain("head")};
  OddNode node{head.listener->port()};
  node.acknowledge(1);
  ASSERT_TRUE(eventually([&] { return head.num_accepted() == 1; }));
  ASSERT_TRUE(head.heard()->wait_closed());
  EXPECT_THAT(head.heard()->outcome->text(), HasSubstr("has received packets that were never sent"));
}

// ---- where links are not made -----------------------------------------------------------------------------------------------------------------

TEST(LinkRules, BeyondLoopbackTlsIsNeededUnlessInsecureIsSpelledOut) {
  detail::IoThread io;
  SecureListener::Options options;
  options.listen = "0.0.0.0:0";
  const auto open = [&](ClusterSecurity security) { return SecureListener::open(io.io(), ClusterRole::Head, security, options, {}); };
  try {
    (void)open(plain("head"));
    FAIL() << "it listened";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::InvalidConfig);
    EXPECT_THAT(failure.what(), AllOf(HasSubstr("0.0.0.0"), HasSubstr("troupe certs init"), HasSubstr("--insecure")));
  }
  EXPECT_THROW((void)SecureLink::connect(io.io(), "10.1.2.3:70", ClusterRole::Node, ClusterRole::Head, plain("node"), {}, {}), Failure);
  EXPECT_THROW((void)SecureLink::connect(io.io(), "some.host:70", ClusterRole::Node, ClusterRole::Head, plain("node"), {}, {}), Failure);
  auto insecure = plain("head");
  insecure.insecure = true;
  ::testing::internal::CaptureStderr();
  const auto listener = open(insecure);
  EXPECT_NE(listener->port(), 0);
  std::this_thread::sleep_for(50ms);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("INSECURE"));
  listener->close();
  io.stop();
}

TEST(LinkRules, AddressesAndPortsInUseAreSaid) {
  TestHead head{plain("head")};
  SecureListener::Options options;
  options.listen = head.address();
  detail::IoThread io;
  try {
    (void)SecureListener::open(io.io(), ClusterRole::Head, plain("head"), options, {});
    FAIL() << "it listened";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::StartFailed);
    EXPECT_THAT(failure.what(), AllOf(HasSubstr(head.address()), HasSubstr("in use")));
  }
  for (const char* wrong : {"", "host", "host:", ":70", "host:x", "host:70000", "::1:70", "[]:70"}) {
    EXPECT_THROW((void)SecureLink::connect(io.io(), wrong, ClusterRole::Node, ClusterRole::Head, plain("node"), {}, {}), Failure) << wrong;
  }
}

TEST(LinkRules, ATokenWithoutCertificatesMustBeTheSameOnBothEnds) {
  TemporaryDirectory ours, theirs;
  for (const auto* directory : {&ours, &theirs}) detail::write_file(directory->path() / "token", detail::make_token(), 0600);
  TestHead head{{ours.path(), "head"}};
  EXPECT_TRUE(outcome_of(head.address(), {ours.path(), "node"}).ok());
  const auto wrong = outcome_of(head.address(), {theirs.path(), "node"});
  EXPECT_EQ(wrong.code(), Errc::InvalidConfig);
  EXPECT_THAT(wrong.text(), HasSubstr("token is not this cluster's"));
  EXPECT_EQ(outcome_of(head.address(), plain("node")).code(), Errc::InvalidConfig);
  EXPECT_EQ(head.listener->refused().token, 2U);
  // And a head that does not know it is not believed.
  TestHead stranger{plain("head")};
  EXPECT_THAT(outcome_of(stranger.address(), {ours.path(), "node"}).text(), HasSubstr("does not know this cluster's token"));
}

}  // namespace
}  // namespace troupe::testing
