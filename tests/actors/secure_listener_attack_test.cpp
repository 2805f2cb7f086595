// Strangers at a listener: none gets in, none takes memory, and good peers keep working.
#include "link_fixtures.hpp"
#include "raw_client.hpp"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <atomic>
#include <random>

namespace troupe::testing {
namespace {

using detail::LinkHello;
using detail::LinkType;
using detail::Side;
using ::testing::HasSubstr;

#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t allowed_growth = 1 << 30;  // it keeps what is freed
#else
constexpr std::size_t allowed_growth = 8 << 20;
#endif

/// On a busy machine a thread may not run for a second; that is no attack's doing.
SecureLinkOptions patient() {
  SecureLinkOptions options;
  options.silence = 10s;
  options.handshake_timeout = 500ms;
  return options;
}

/// A node that is served all the while: it sends, and its echoes come back in time.
class GoodPeer {
 public:
  GoodPeer(TestHead& head, const ClusterSecurity& security) : node_(head.address(), security, patient()) {
    EXPECT_TRUE(node_.heard->wait_open());
    thread_ = std::thread{[this] {
      while (!stopped_) {
        (void)node_.link->send({1, "are you there?"});
        ++sent_;
        if (!node_.heard->wait_packets(sent_, 5s)) ++missed_;
        std::this_thread::sleep_for(1ms);
      }
    }};
  }
  ~GoodPeer() { stop(); }
  void stop() {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
  }
  /// It was, and is still.
  void expect_served() {
    const auto before = sent_.load();
    EXPECT_TRUE(eventually([&] { return sent_ >= before + 5; }));
    stop();
    EXPECT_EQ(missed_, 0);
    EXPECT_FALSE(node_.heard->outcome) << node_.heard->outcome->text();
    EXPECT_EQ(node_.heard->interrupted, 0);
  }

 private:
  TestNode node_;
  std::atomic<bool> stopped_{false};
  std::atomic<std::size_t> sent_{0};
  int missed_ = 0;
  std::thread thread_;
};

/// A head that echoes, and a good peer of it: one link is accepted, and must stay the only one.
class Attack : public ::testing::TestWithParam<bool> {
 protected:
  Attack() {
    if (!GetParam()) detail::write_file(token_only_.path() / "token", detail::make_token(), 0600);
    head_ = std::make_unique<TestHead>(as("head"), options());
    head_->echoes = true;
    good_ = std::make_unique<GoodPeer>(*head_, as("node"));
    EXPECT_TRUE(eventually([&] { return head_->num_accepted() == 1; }));
  }
  static SecureListener::Options options() {
    SecureListener::Options options;
    options.link = patient();
    return options;
  }
  [[nodiscard]] ClusterSecurity as(const std::string& name) const { return GetParam() ? cluster().as(name) : ClusterSecurity{token_only_.path(), name}; }
  static TestCluster& cluster() {
    static TestCluster made;
    return made;
  }
  [[nodiscard]] std::uint16_t port() const { return head_->listener->port(); }
  [[nodiscard]] SecureListener::Refused refused() const { return head_->listener->refused(); }
  void expect_nothing_happened(std::uint64_t links = 1) {
    good_->expect_served();
    EXPECT_EQ(head_->num_accepted(), links);
    EXPECT_TRUE(outcome_of(head_->address(), as("node")).ok()) << "a new good peer";
  }

  TemporaryDirectory token_only_;
  std::unique_ptr<TestHead> head_;
  std::unique_ptr<GoodPeer> good_;
};

TEST_P(Attack, PlainHttpGetsNoAnswer) {
  for (int i = 0; i < 20; ++i) {
    RawClient client{port()};
    client.send("GET / HTTP/1.1\r\nHost: head\r\nUser-Agent: scanner/1.0\r\n\r\n");
    EXPECT_EQ(client.receive_to_end(5s), "");
  }
  EXPECT_TRUE(eventually([&] { return (GetParam() ? refused().no_tls : refused().other) == 20; }));
  expect_nothing_happened();
}

TEST_P(Attack, AHalfOpenConnectionIsClosedAfterItsTime) {
  const auto begin = std::chrono::steady_clock::now();
  RawClient silent{port()}, slow{port()};
  slow.send(GetParam() ? std::string_view{"\x16\x03\x01\x02", 4} : std::string_view{"TRP", 3});
  EXPECT_EQ(silent.receive_to_end(5s), "");
  EXPECT_EQ(slow.receive_to_end(5s), "");
  const auto took = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(took, 450ms);
  EXPECT_LE(took, 4s);
  EXPECT_TRUE(eventually([&] { return refused().silent == 1 && refused().other == 1; }));
  expect_nothing_happened();
}

TEST_P(Attack, TooManyBytesBeforeAHelloEndTheConnection) {
  RawClient client{port()};
  // Of valid beginnings: a TLS record, or a frame, that never ends.
  std::string bytes;
  if (GetParam()) {
    bytes = std::string("\x16\x03\x01\x40\x00", 5) + std::string("\x01\x00\x3f\xfc\x03\x03", 6);
  } else {
    for (int i = 0; i < 400; ++i) bytes += detail::link_frame(LinkType::Beat, std::string(1000, 'x'));
  }
  int sent = 0;
  for (; sent < 100 && client.send(bytes + std::string(1000, '\0')); ++sent) std::this_thread::sleep_for(1ms);
  EXPECT_LT(sent, 50);  // 4 KiB, and what the kernel had taken by then
  EXPECT_TRUE(client.receive_to_end(5s).has_value());
  expect_nothing_happened();
}

TEST_P(Attack, AMillionBytesOfNoiseChangeNothing) {
  std::mt19937 draw{20};
  const auto hello = detail::link_frame(LinkType::Greeting, std::string(32, 'n'));
  const std::string client_hello("\x16\x03\x01\x00\xc0\x01\x00\x00\xbc\x03\x03", 11);
  std::vector<std::size_t> resident;
  std::size_t sent = 0;
  const auto before = resident_bytes();
  for (int round = 0; sent < 1'000'000; ++round) {
    std::string bytes(1 + draw() % 3000, '\0');
    for (auto& byte : bytes) byte = static_cast<char>(draw());
    // A third begins as what is expected, a third is that with some bits changed.
    const auto& start = GetParam() ? client_hello : hello;
    if (round % 3 != 0) bytes.replace(0, std::min(bytes.size(), start.size()), start.substr(0, std::min(bytes.size(), start.size())));
    if (round % 3 == 2) bytes[draw() % std::min<std::size_t>(bytes.size(), start.size() + 16)] ^= static_cast<char>(1U << draw() % 8);
    RawClient client{port()};
    client.send(bytes);
    sent += bytes.size();
    (void)client.receive(1ms);
  }
  EXPECT_LE(resident_bytes(), before + allowed_growth);
  expect_nothing_happened();
}

TEST_P(Attack, TenThousandIdleConnectionsCostNothing) {
  constexpr int wanted = 10'000;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const auto needed = static_cast<rlim_t>(wanted + 300);
  if (limit.rlim_cur < needed) {
    if (limit.rlim_max < needed) GTEST_SKIP() << "this needs " << needed << " descriptors, and the hard limit is " << limit.rlim_max;
    limit.rlim_cur = needed;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  }
  std::vector<RawClient> idle;
  idle.reserve(wanted);
  const auto before = resident_bytes();
  for (int i = 0; i < wanted; ++i) {
    idle.emplace_back(port());
    ASSERT_TRUE(idle.back().is_connected()) << i;
  }
  EXPECT_TRUE(outcome_of(head_->address(), as("node")).ok()) << "a good peer behind them";
  EXPECT_LE(resident_bytes(), before + allowed_growth);
  EXPECT_TRUE(eventually([&] { return refused().silent == static_cast<std::uint64_t>(wanted); }, 20s)) << refused().silent;
  EXPECT_LE(resident_bytes(), before + allowed_growth);
  idle.clear();
  expect_nothing_happened(2);
}

/// A Hello that is right for `binding`.
std::string hello_frame(const ClusterIdentity& who, std::string_view binding, const std::string& token, char link) {
  LinkHello hello;
  hello.who = who;
  hello.link.fill(link);
  hello.mac = detail::mac_of(hello, Side::Dialing, binding, token);
  return detail::link_frame(LinkType::Hello, encode(hello));
}

TEST_P(Attack, AHelloWithoutTheTokenIsRefused) {
  const std::string wrong(32, 'w');
  if (GetParam()) {
    detail::TlsContext context{cluster().as("node"), ClusterRole::Node};
    TlsClient client{port(), context.get()};
    ASSERT_TRUE(client.shake_hands());
    client.send(hello_frame({"test", ClusterRole::Node, "node"}, client.engine().binding(), wrong, 'a'));
    const auto answer = client.frame();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->first, LinkType::Refused);
    EXPECT_THAT(answer->second, HasSubstr("token"));
  } else {
    RawClient client{port()};
    const std::string nonce(32, 'n');
    client.send(detail::link_frame(LinkType::Greeting, nonce));
    const auto challenge = *client.receive(5s);
    ASSERT_EQ(challenge.size(), detail::link_header_bytes + 32);
    client.send(hello_frame({"", ClusterRole::Node, "node"}, challenge.substr(detail::link_header_bytes) + nonce, wrong, 'a'));
    EXPECT_THAT(client.receive_to_end(5s).value_or("still connected"), HasSubstr("token"));
  }
  EXPECT_EQ(refused().token, 1U);
  expect_nothing_happened();
}

TEST_P(Attack, AHelloCannotBeReplayed) {
  const auto token = detail::read_token(as("node").directory / "token");
  if (GetParam()) {
    detail::TlsContext context{cluster().as("node"), ClusterRole::Node};
    TlsClient recorded{port(), context.get()};
    ASSERT_TRUE(recorded.shake_hands());
    const auto hello = hello_frame({"test", ClusterRole::Node, "node"}, recorded.engine().binding(), token, 'b');
    recorded.send(hello);
    ASSERT_EQ(recorded.frame()->first, LinkType::Welcome);
    TlsClient replay{port(), context.get()};
    ASSERT_TRUE(replay.shake_hands());
    replay.send(hello);
    EXPECT_EQ(replay.frame()->first, LinkType::Refused);
  } else {
    const std::string nonce(32, 'n');
    const auto greeting = detail::link_frame(LinkType::Greeting, nonce);
    RawClient recorded{port()};
    recorded.send(greeting);
    const auto challenge = *recorded.receive(5s);
    ASSERT_EQ(challenge.size(), detail::link_header_bytes + 32);
    const auto hello = hello_frame({"", ClusterRole::Node, "node"}, challenge.substr(detail::link_header_bytes) + nonce, token, 'b');
    recorded.send(hello);
    ASSERT_GT(recorded.receive(5s)->size(), 32U);
    RawClient replay{port()};
    replay.send(greeting);
    EXPECT_NE(*replay.receive(5s), challenge);
    replay.send(hello);
    EXPECT_THAT(replay.receive_to_end(5s).value_or("still connected"), HasSubstr("token"));
  }
  EXPECT_EQ(refused().token, 1U);
  expect_nothing_happened(2);
}

TEST_P(Attack, AMillionBytesAfterAuthenticationEndOnlyThatLink) {
  const auto token = detail::read_token(as("node").directory / "token");
  std::mt19937 draw{21};
  std::optional<detail::TlsContext> context;
  if (GetParam()) context.emplace(cluster().as("node"), ClusterRole::Node);
  const auto before = resident_bytes();
  std::size_t sent = 0;
  std::uint64_t links = 1;
  for (int round = 0; sent < 1'000'000; ++round, ++links) {
    std::string bytes;
    for (std::uint64_t i = 1; bytes.size() < 4000; ++i) detail::append_frame(bytes, static_cast<std::uint16_t>(draw() % 9), i, std::string(draw() % 200, 'p'));
    // Good packets with some bytes changed, or noise from somewhere on.
    for (int i = 0; i < 3; ++i) bytes[draw() % bytes.size()] = static_cast<char>(draw());
    if (round % 3 == 0) {
      for (auto at = draw() % bytes.size(); at < bytes.size(); ++at) bytes[at] = static_cast<char>(draw());
    }
    const auto link = static_cast<char>(round);
    if (GetParam()) {
      TlsClient client{port(), context->get()};
      ASSERT_TRUE(client.shake_hands()) << "round " << round << ", silent " << refused().silent << ", other " << refused().other << ": " << client.engine().reason();
      std::string name = hello_frame({"test", ClusterRole::Node, "node"}, client.engine().binding(), token, link);
      client.send(name);
      ASSERT_EQ(client.frame()->first, LinkType::Welcome) << round;
      client.send(bytes);
      sent += bytes.size();
    } else {
      RawClient client{port()};
      const std::string nonce(32, 'n');
      client.send(detail::link_frame(LinkType::Greeting, nonce));
      const auto challenge = *client.receive(5s);
      client.send(hello_frame({"", ClusterRole::Node, "node"}, challenge.substr(detail::link_header_bytes) + nonce, token, link));
      ASSERT_GT(client.receive(5s)->size(), 32U);
      client.send(bytes);
      sent += bytes.size();
    }
    // The next round's link has another id: this one may still wait for its peer to come back.
    if (round == 255) break;
  }
  EXPECT_GE(sent, 900'000U);
  EXPECT_EQ(refused().silent, 0U);
  EXPECT_LE(resident_bytes(), before + allowed_growth + links * 8'000);  // the test itself keeps what every link heard
  expect_nothing_happened(links);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Attack, ::testing::Bool(), [](const auto& param) { return param.param ? "Tls" : "Plain"; });

// ---- certificates that do not fit -------------------------------------------------------------------------------------------------------------

class WrongCertificate : public ::testing::Test {
 protected:
  void expect_refused(const Outcome& outcome, const std::string& words, std::uint64_t SecureListener::Refused::*reason) {
    EXPECT_EQ(outcome.code(), Errc::InvalidConfig) << outcome.text();
    EXPECT_THAT(outcome.text(), HasSubstr(words));
    EXPECT_TRUE(eventually([&] { return head_.listener->refused().*reason == 1; }, 3s));
    EXPECT_EQ(head_.num_accepted(), 0U);
  }
  static detail::Validity days(int from, int until) {
    const auto now = std::time(nullptr);
    return {now + from * 86'400, now + until * 86'400};
  }
  /// What a listener answers to a client that does not look at its own files first.
  struct Answer {
    bool open = false;
    std::string words;
  };
  Answer answer_to(const std::string& name, int max_version = TLS1_3_VERSION) {
    detail::OpenSsl<SSL_CTX> context{SSL_CTX_new(TLS_client_method())};
    SSL_CTX_set_max_proto_version(context.get(), max_version);
    if (!name.empty()) {
      SSL_CTX_use_certificate_file(context.get(), (cluster_.directory() / (name + ".pem")).c_str(), SSL_FILETYPE_PEM);
      SSL_CTX_use_PrivateKey_file(context.get(), (cluster_.directory() / (name + ".key")).c_str(), SSL_FILETYPE_PEM);
    }
    TlsClient client{head_.listener->port(), *context};
    if (!client.shake_hands()) return {false, client.engine().reason()};
    client.send(hello_frame({"test", ClusterRole::Node, name.empty() ? "x" : name}, client.engine().binding(), detail::read_token(cluster_.directory() / "token"), 'c'));
    const auto frame = client.frame();
    if (!frame) return {false, client.engine().reason()};
    return {frame->first == LinkType::Welcome, frame->second};
  }
  void expect_turned_away(const Answer& answer, const std::string& words, std::uint64_t SecureListener::Refused::*reason) {
    EXPECT_FALSE(answer.open);
    EXPECT_THAT(answer.words, HasSubstr(words));
    EXPECT_TRUE(eventually([&] { return head_.listener->refused().*reason == 1; }, 3s));
    EXPECT_EQ(head_.num_accepted(), 0U);
  }

  TestCluster cluster_;
  TestHead head_{cluster_.as("head")};
};

using Refused = SecureListener::Refused;

TEST_F(WrongCertificate, OfAnotherCa) {
  TestCluster other;
  expect_refused(outcome_of(head_.address(), other.as("node")), "does not come from this cluster's CA", &Refused::certificate);
}

TEST_F(WrongCertificate, OfAnotherCaThatTrustsThisOne) {
  TestCluster other;  // it believes the head, so it is the head that turns it away
  const auto both = detail::read_small_file(other.directory() / "ca.pem") + detail::read_small_file(cluster_.directory() / "ca.pem");
  detail::write_file(other.directory() / "ca.pem", both, 0644, detail::Replace::Yes);
  expect_refused(outcome_of(head_.address(), other.as("node")), "does not know the CA", &Refused::certificate);
}

TEST_F(WrongCertificate, OfAnotherClusterWithTheSameCa) {
  cluster_.issue("x", "troupe://other/node/x", days(-1, 1));
  expect_turned_away(answer_to("x"), "your certificate is of cluster 'other'", &Refused::certificate);
}

TEST_F(WrongCertificate, Expired) {
  cluster_.issue("x", "troupe://test/node/x", days(-3, -1));
  expect_turned_away(answer_to("x"), "has expired", &Refused::certificate);
}

TEST_F(WrongCertificate, NotValidYet) {
  cluster_.issue("x", "troupe://test/node/x", days(1, 3));
  expect_turned_away(answer_to("x"), "does not take this side's certificate", &Refused::certificate);
}

TEST_F(WrongCertificate, WithoutARole) {
  cluster_.issue("x", "", days(-1, 1));
  expect_turned_away(answer_to("x"), "names no role", &Refused::role);
}

TEST_F(WrongCertificate, None) { expect_turned_away(answer_to(""), "does not take this side's certificate", &Refused::certificate); }

TEST_F(WrongCertificate, Tls12) { expect_turned_away(answer_to("node", TLS1_2_VERSION), "does not speak TLS 1.3", &Refused::version); }

TEST_F(WrongCertificate, OfARoleThatMayNotConnect) {
  expect_refused(outcome_of(head_.address(), cluster_.as("head"), {}, ClusterRole::Head), "a head may not connect to this head", &Refused::role);
}

TEST_F(WrongCertificate, UsedUnderAnotherName) {
  cluster_.issue("x", "troupe://test/node/y", days(-1, 1));
  expect_turned_away(answer_to("x"), "you say to be another than your certificate", &Refused::other);
}

TEST_F(WrongCertificate, OfAListenerWithAnotherRole) {
  detail::IoThread io;
  const auto node = SecureListener::open(io.io(), ClusterRole::Node, cluster_.as("node"), {}, [](const auto&, const auto&) { return SecureLink::Handlers{}; });
  const auto outcome = outcome_of("127.0.0.1:" + std::to_string(node->port()), cluster_.as("operator"), {}, ClusterRole::Operator);
  EXPECT_EQ(outcome.code(), Errc::InvalidConfig);
  EXPECT_THAT(outcome.text(), HasSubstr("it is node 'node', no head"));
  node->close();
  io.stop();
}

TEST_F(WrongCertificate, NothingSecretIsInArgumentsOrEnvironment) {
  const auto token = detail::read_small_file(cluster_.directory() / "token").substr(0, 64);
  const auto seen = detail::read_small_file("/proc/self/cmdline") + detail::read_small_file("/proc/self/environ");
  EXPECT_FALSE(seen.empty());
  EXPECT_EQ(seen.find(token), std::string::npos);
  EXPECT_EQ(seen.find("PRIVATE KEY"), std::string::npos);
}

}  // namespace
}  // namespace troupe::testing
