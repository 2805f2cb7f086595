#include "link_fixtures.hpp"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <set>

namespace troupe::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

unsigned mode_of(const fs::path& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777U : 0;
}

/// What `check` says; empty: nothing.
std::string complaint(const ClusterSecurity& security, ClusterRole role = ClusterRole::Node) {
  try {
    check(security, role);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

detail::Validity days(int from, int until) {
  const auto now = std::time(nullptr);
  return {now + from * 86'400, now + until * 86'400};
}

TEST(Certificates, AreWrittenWithTheirPermissionsAndNeverOverwritten) {
  TestCluster cluster;
  for (const char* secret : {"ca.key", "node.key", "token"}) EXPECT_EQ(mode_of(cluster.directory() / secret), 0600U) << secret;
  for (const char* open : {"ca.pem", "node.pem"}) EXPECT_EQ(mode_of(cluster.directory() / open), 0644U) << open;
  EXPECT_EQ(mode_of(cluster.directory()), 0700U);
  const auto before = detail::read_small_file(cluster.directory() / "ca.key");
  EXPECT_THROW(make_cluster_ca(cluster.directory(), "other", 24h), Failure);
  EXPECT_THROW(cluster.issue(ClusterRole::Node, "node"), Failure);
  EXPECT_EQ(detail::read_small_file(cluster.directory() / "ca.key"), before);
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator{cluster.directory()}) names.insert(entry.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"ca.key", "ca.pem", "head.key", "head.pem", "node.key", "node.pem", "operator.key", "operator.pem", "token"}));
}

TEST(Certificates, AreIssuedIntoADirectoryOfTheirOwn) {
  TestCluster cluster, other{"other"};
  TemporaryDirectory place;
  issue_certificate(cluster.directory(), ClusterRole::Node, "a", 24h, place.path() / "a");
  EXPECT_EQ(complaint({place.path() / "a", "a"}), "");
  EXPECT_FALSE(fs::exists(place.path() / "a" / "ca.key"));
  EXPECT_THROW(issue_certificate(other.directory(), ClusterRole::Node, "b", 24h, place.path() / "a"), Failure);
  EXPECT_FALSE(fs::exists(place.path() / "a" / "b.pem"));
  const auto before = detail::read_small_file(place.path() / "a" / "a.pem");
  issue_certificate(cluster.directory(), ClusterRole::Node, "a", 24h, place.path() / "a", true);
  EXPECT_NE(detail::read_small_file(place.path() / "a" / "a.pem"), before);
  EXPECT_EQ(complaint({place.path() / "a", "a"}), "");
}

TEST(Certificates, HoldClusterRoleAndName) {
  TestCluster cluster;
  const auto leaf = std::move(detail::read_certificates(cluster.directory() / "operator.pem").front());
  EXPECT_EQ(detail::identity_of(*leaf), (ClusterIdentity{"test", ClusterRole::Operator, "operator"}));
  EXPECT_EQ(detail::cluster_of(*detail::read_certificates(cluster.directory() / "ca.pem").front()), "test");
  EXPECT_EQ(EVP_PKEY_get_bits(X509_get0_pubkey(leaf.get())), 256);
  const auto list = list_certificates(cluster.directory());
  ASSERT_EQ(list.size(), 4U);
  EXPECT_EQ(list[0].role, "ca");
  EXPECT_EQ(list[1].role + "/" + list[1].name, "head/head");
  EXPECT_NEAR(static_cast<double>(list[1].days_left), 9.5, 0.5);  // 240 hours less a moment
}

TEST(Certificates, OddUrisNameNobody) {
  TestCluster cluster;
  for (const char* uri : {"troupe://test/node", "troupe://test/king/x", "troupe://test/node/a/b", "troupe:///node/a", "troupe://test/node/", "https://test/node/a", "troupe://test/node/a b"}) {
    cluster.issue("odd", uri, days(-1, 1));
    EXPECT_EQ(detail::identity_of(*detail::read_certificates(cluster.directory() / "odd.pem").front()), std::nullopt) << uri;
  }
}

TEST(Certificates, WrongNamesAndTimesAreRefused) {
  TemporaryDirectory place;
  for (const char* name : {"", "a/b", "-a", "a b", ".", "ä"}) {
    EXPECT_THROW(make_cluster_ca(place.path() / "x", name, 24h), Failure) << name;
  }
  EXPECT_THROW(make_cluster_ca(place.path() / "x", "a", 0h), Failure);
  EXPECT_FALSE(fs::exists(place.path() / "x"));
  TestCluster cluster;
  EXPECT_THROW(cluster.issue(ClusterRole::Node, "../x"), Failure);
  EXPECT_THROW(cluster.issue(ClusterRole::Node, "ca"), Failure);
}

TEST(CertificateCheck, SaysWhatIsMissing) {
  TestCluster cluster;
  EXPECT_EQ(complaint(cluster.as("node")), "");
  EXPECT_EQ(complaint({}), "");
  EXPECT_THAT(complaint(cluster.as("nobody")), AllOf(HasSubstr("nobody.pem: is not there"), HasSubstr("troupe certs issue --role node --name nobody")));
  EXPECT_THAT(complaint(cluster.as("")), HasSubstr("no name of a certificate"));
  fs::remove(cluster.directory() / "node.key");
  EXPECT_THAT(complaint(cluster.as("node")), HasSubstr("node.key: is not there"));
  fs::remove(cluster.directory() / "token");
  EXPECT_THAT(complaint(cluster.as("head"), ClusterRole::Head), HasSubstr("token: is not there"));
  fs::remove(cluster.directory() / "ca.pem");
  EXPECT_THAT(complaint(cluster.as("head"), ClusterRole::Head), HasSubstr("ca.pem: is not there"));
}

TEST(CertificateCheck, SaysWhoMayReadTooMuch) {
  TestCluster cluster;
  for (const char* secret : {"node.key", "token"}) {
    fs::permissions(cluster.directory() / secret, fs::perms::group_read, fs::perm_options::add);
    EXPECT_THAT(complaint(cluster.as("node")), AllOf(HasSubstr(std::string(secret) + ": others than its owner may use it (mode 0640)"), HasSubstr("chmod 600")));
    fs::permissions(cluster.directory() / secret, fs::perms::group_read, fs::perm_options::remove);
  }
  EXPECT_EQ(complaint(cluster.as("node")), "");
}

TEST(CertificateCheck, SaysWhatTheCertificateIsNot) {
  TestCluster cluster, other;
  EXPECT_THAT(complaint(cluster.as("node"), ClusterRole::Head), AllOf(HasSubstr("for role node"), HasSubstr("needs role head")));
  cluster.issue("old", "troupe://test/node/old", days(-10, -1));
  EXPECT_THAT(complaint(cluster.as("old")), AllOf(HasSubstr("old.pem: expired on " + detail::date_text(std::time(nullptr) - 86'400)), HasSubstr("troupe certs issue --replace")));
  cluster.issue("early", "troupe://test/node/early", days(2, 3));
  EXPECT_THAT(complaint(cluster.as("early")), AllOf(HasSubstr("not valid before " + detail::date_text(std::time(nullptr) + 2 * 86'400)), HasSubstr("clock")));
  cluster.issue("roleless", "", days(-1, 1));
  EXPECT_THAT(complaint(cluster.as("roleless")), HasSubstr("names no role"));
  cluster.issue("renamed", "troupe://test/node/another", days(-1, 1));
  EXPECT_THAT(complaint(cluster.as("renamed")), HasSubstr("is the certificate of 'another', not of 'renamed'"));
  cluster.issue("foreign", "troupe://elsewhere/node/foreign", days(-1, 1));
  EXPECT_THAT(complaint(cluster.as("foreign")), HasSubstr("is of cluster 'elsewhere'"));
  fs::copy_file(other.directory() / "node.pem", cluster.directory() / "node.pem", fs::copy_options::overwrite_existing);
  EXPECT_THAT(complaint(cluster.as("node")), HasSubstr("node.key: does not belong to the certificate node.pem"));
  fs::copy_file(other.directory() / "node.key", cluster.directory() / "node.key", fs::copy_options::overwrite_existing);
  EXPECT_THAT(complaint(cluster.as("node")), HasSubstr("does not come from a CA in ca.pem"));
  std::ofstream{cluster.directory() / "node.pem"} << "no certificate";
  EXPECT_THAT(complaint(cluster.as("node")), HasSubstr("is no certificate in PEM format"));
  std::ofstream{cluster.directory() / "token"} << "short";
  EXPECT_THAT(complaint(cluster.as("head"), ClusterRole::Head), HasSubstr("is no token"));
}

TEST(CertificateCheck, WarnsAWeekBeforeTheEnd) {
  TestCluster cluster;
  EXPECT_EQ(expiry_warning(cluster.as("node")), "");
  const auto key = detail::read_key(cluster.directory() / "ca.key");
  detail::write_file(cluster.directory() / "ca.pem", detail::to_pem(*detail::make_ca(*key, "test", days(-1, 6))), 0644, detail::Replace::Yes);
  EXPECT_THAT(expiry_warning(cluster.as("node")), HasSubstr("ca.pem: the CA expires on "));
  rotate_cluster_ca(cluster.directory(), 24h * 365);
  cluster.issue("soon", "troupe://test/node/soon", days(-1, 6));
  cluster.issue("later", "troupe://test/node/later", days(-1, 8));
  EXPECT_THAT(expiry_warning(cluster.as("soon")), HasSubstr("soon.pem: expires on "));
  EXPECT_EQ(expiry_warning(cluster.as("later")), "");
  EXPECT_EQ(expiry_warning({}), "");
}

// ---- rotation ---------------------------------------------------------------------------------------------------------------------------------

TEST(CertificateRotation, OldAndNewLeavesVerifyEachOther) {
  TestCluster cluster;
  rotate_cluster_ca(cluster.directory(), 240h);
  cluster.issue(ClusterRole::Node, "renewed");
  EXPECT_EQ(detail::read_certificates(cluster.directory() / "ca.pem").size(), 2U);
  EXPECT_EQ(complaint(cluster.as("node")), "");
  EXPECT_EQ(complaint(cluster.as("renewed")), "");
  TestHead head{cluster.as("head")};  // its leaf is the old CA's
  EXPECT_TRUE(outcome_of(head.address(), cluster.as("renewed")).ok());
  EXPECT_TRUE(outcome_of(head.address(), cluster.as("node")).ok());
}

TEST(CertificateRotation, AnExpiredCaIsLeftOutOfTheNext) {
  TestCluster cluster;
  const auto key = detail::read_key(cluster.directory() / "ca.key");
  detail::write_file(cluster.directory() / "ca.pem", detail::to_pem(*detail::make_ca(*key, "test", days(-10, -1))), 0644, detail::Replace::Yes);
  EXPECT_THROW(cluster.issue(ClusterRole::Node, "late"), Failure);
  rotate_cluster_ca(cluster.directory(), 24h);
  EXPECT_EQ(detail::read_certificates(cluster.directory() / "ca.pem").size(), 1U);
  cluster.issue(ClusterRole::Node, "late");
  EXPECT_EQ(complaint(cluster.as("late")), "");
}

TEST(CertificateRotation, AListenerTakesRenewedFilesWithoutBeingStartedAgain) {
  TestCluster cluster;
  TemporaryDirectory place;
  issue_certificate(cluster.directory(), ClusterRole::Head, "h", 240h, place.path());
  TestHead head{{place.path(), "h"}};
  ASSERT_TRUE(outcome_of(head.address(), cluster.as("node")).ok());
  rotate_cluster_ca(cluster.directory(), 240h);
  cluster.issue(ClusterRole::Node, "renewed");
  EXPECT_EQ(outcome_of(head.address(), cluster.as("renewed")).code(), Errc::InvalidConfig);  // the head has not got the new CA
  issue_certificate(cluster.directory(), ClusterRole::Head, "h", 240h, place.path(), true);
  EXPECT_TRUE(outcome_of(head.address(), cluster.as("renewed")).ok());
  EXPECT_TRUE(outcome_of(head.address(), cluster.as("node")).ok());
}

}  // namespace
}  // namespace troupe::testing
