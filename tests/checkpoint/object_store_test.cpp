#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "faulty_store.hpp"
#include "s3_server.hpp"
#include "store_fixtures.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// ---- one contract for all stores -------------------------------------------------------------------------------

struct Kind {
  std::string name;
  bool s3 = false;
  bool faulty = false;
};

class StoreContract : public StoreTest, public testing::WithParamInterface<Kind> {
 protected:
  std::unique_ptr<S3Server> server_;
  std::unique_ptr<ObjectStore> store_;

  void SetUp() override {
    if (GetParam().s3) {
      if (const auto why = S3Server::missing(); !why.empty()) GTEST_SKIP() << why;
      server_ = std::make_unique<S3Server>(root_.string() + "-s3");
      server_->make_bucket("bucket");
    }
    fs::create_directories(root_ / "store");
    store_ = open("bucket", root_ / "store");
  }
  void TearDown() override {
    store_.reset();
    if (server_) fs::remove_all(server_->root());
  }
  std::unique_ptr<ObjectStore> open(const std::string& bucket, const fs::path& directory) {
    if (GetParam().s3) return open_s3_store(parse_store_url(server_->url(bucket)), {.part_bytes = 5 << 20});
    auto store = make_directory_store(directory);
    if (!GetParam().faulty) return store;
    // Every other call fails, before or after it had its effect.
    auto breaks = [](int call, const std::string&, const std::string&) {
      return call % 2 == 0 ? std::optional{Fault{static_cast<StoreError>(call / 2 % 5), call % 4 == 0}} : std::nullopt;
    };
    return with_retries(std::make_unique<FaultyStore>(std::move(store), breaks), {}, std::make_unique<FakeStoreClock>());
  }
};

TEST_P(StoreContract, GivesBackWhatWasPut) {
  for (const std::size_t size : {0, 1, 4097, (1 << 20) + 3}) {
    const auto bytes = noise(size);
    store_->put("a/b c/ü+&=%.bin", write("file", bytes));
    EXPECT_EQ(store_->head("a/b c/ü+&=%.bin"), (ObjectInfo{"a/b c/ü+&=%.bin", size}));
    EXPECT_EQ(get(*store_, "a/b c/ü+&=%.bin", 0, size), bytes);
  }
}

TEST_P(StoreContract, PutsInPartsAndReadsRanges) {
  const auto bytes = noise((27 << 20) + 12345);  // six parts of 5 MiB at S3
  store_->put("big", write("file", bytes));
  EXPECT_EQ(store_->head("big")->bytes, bytes.size());
  EXPECT_EQ(get(*store_, "big", 0, 7), bytes.substr(0, 7));
  EXPECT_EQ(get(*store_, "big", (5 << 20) - 3, 6), bytes.substr((5 << 20) - 3, 6));
  EXPECT_EQ(get(*store_, "big", bytes.size() - 5, 5), bytes.substr(bytes.size() - 5));
  download(*store_, "big", bytes.size(), root_ / "back", 3);
  EXPECT_TRUE(read(root_ / "back") == bytes);
}

TEST_P(StoreContract, ReplacesAnObject) {
  store_->put("k", write("one", "one"));
  store_->put("k", write("two", "second"));
  EXPECT_EQ(store_->head("k")->bytes, 6u);
  EXPECT_EQ(get(*store_, "k", 0, 6), "second");
}

TEST_P(StoreContract, ListsWhatIsBelowAPrefixOnly) {
  for (const auto* key : {"run/a", "run/c/d", "run2/x", "other"}) store_->put(key, write("file", key));
  EXPECT_THAT(store_->list("run"), ElementsAre(ObjectInfo{"run/a", 5}, ObjectInfo{"run/c/d", 7}));
  EXPECT_THAT(store_->list("run/c"), ElementsAre(ObjectInfo{"run/c/d", 7}));
  EXPECT_THAT(store_->list("nothing/here"), ElementsAre());
  EXPECT_EQ(store_->list("").size(), 4u);
}

TEST_P(StoreContract, RemovesAnObjectAndOnlyThat) {
  for (const auto* key : {"p/a", "p/b"}) store_->put(key, write("file", "x"));
  store_->remove("p/a");
  store_->remove("p/a");
  store_->remove("p/never");
  EXPECT_FALSE(store_->head("p/a"));
  EXPECT_THAT(store_->list("p"), ElementsAre(ObjectInfo{"p/b", 1}));
  store_->remove("p/b");
  EXPECT_THAT(store_->list("p"), ElementsAre());
}

TEST_P(StoreContract, SaysWhatIsNotThere) {
  EXPECT_FALSE(store_->head("none"));
  const auto [error, text] = failure_of([&] { get(*store_, "none", 0, 4); });
  EXPECT_EQ(error, StoreError::NotFound);
  EXPECT_THAT(text, HasSubstr("none"));
  store_->put("short", write("file", "12345"));
  EXPECT_EQ(failure_of([&] { get(*store_, "short", 3, 4); }).first, StoreError::PastEnd);
  EXPECT_EQ(failure_of([&] { get(*store_, "short", 9, 4); }).first, StoreError::PastEnd);
}

TEST_P(StoreContract, SaysThatThereIsNoSuchBucket) {
  const auto store = open("nobucket", root_ / "nowhere");
  EXPECT_EQ(failure_of([&] { store->check(); }).first, StoreError::NoBucket);
  EXPECT_EQ(failure_of([&] { store->put("k", write("file", "x")); }).first, StoreError::NoBucket);
  EXPECT_EQ(failure_of([&] { (void)store->list("k"); }).first, StoreError::NoBucket);
  EXPECT_EQ(failure_of([&] { (void)store->head("k"); }).first, StoreError::NoBucket);
}

TEST_P(StoreContract, PutsNothingWhenTheFileCannotBeRead) {
  EXPECT_EQ(failure_of([&] { store_->put("k", root_ / "none"); }).first, StoreError::Local);
  EXPECT_FALSE(store_->head("k"));
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreContract, testing::Values(Kind{"Directory"}, Kind{"FaultyDirectory", false, true}, Kind{"S3", true}),
                         [](const auto& made) { return made.param.name; });

// ---- retries ---------------------------------------------------------------------------------------------------

class RetryTest : public StoreTest {
 protected:
  FakeStoreClock* clock_ = nullptr;
  FaultyStore* faulty_ = nullptr;
  std::vector<StoreRetry> retries_;

  std::unique_ptr<ObjectStore> store(FaultyStore::Plan plan, RetryPolicy policy = {}) {
    auto faulty = std::make_unique<FaultyStore>(make_directory_store(root_), std::move(plan));
    auto clock = std::make_unique<FakeStoreClock>();
    faulty_ = faulty.get();
    clock_ = clock.get();
    return with_retries(std::move(faulty), policy, std::move(clock), [this](const StoreRetry& retry) { retries_.push_back(retry); });
  }
  static FaultyStore::Plan always(StoreError error) {
    return [error](int, const std::string&, const std::string&) { return Fault{error}; };
  }
};

TEST_F(RetryTest, TriesAgainByClassOfError) {
  for (const auto error : {StoreError::Throttled, StoreError::Server, StoreError::Timeout, StoreError::Connection, StoreError::Truncated}) {
    const auto some = store([error](int call, const auto&, const auto&) { return call < 3 ? std::optional{Fault{error}} : std::nullopt; });
    EXPECT_NO_THROW(some->put("k", write("file", "x"))) << name(error);
    EXPECT_EQ(faulty_->calls(), 4);
  }
  for (const auto error : {StoreError::PastEnd, StoreError::Denied, StoreError::NoBucket, StoreError::NotFound, StoreError::Refused, StoreError::Local}) {
    const auto some = store(always(error));
    EXPECT_EQ(failure_of([&] { some->put("k", write("file", "x")); }).first, error);
    EXPECT_EQ(faulty_->calls(), 1) << name(error);
    EXPECT_EQ(clock_->pauses, 0);
  }
}

TEST_F(RetryTest, WaitsLongerEachTimeUpToABound) {
  const RetryPolicy policy{.first_delay = 100ms, .longest_delay = 1s};
  std::vector<std::int64_t> pauses;
  for (int tries = 1; tries <= 6; ++tries) pauses.push_back(pause_before_retry(policy, tries, StoreError::Server, 1.0).count());
  EXPECT_THAT(pauses, ElementsAre(100, 200, 400, 800, 1000, 1000));
  EXPECT_EQ(pause_before_retry(policy, 1, StoreError::Throttled, 1.0), 200ms);
  EXPECT_EQ(pause_before_retry(policy, 1, StoreError::Server, 0.0), 50ms);  // jitter
  EXPECT_EQ(pause_before_retry(policy, 2'000'000'000, StoreError::Server, 1.0), 1s);
}

TEST_F(RetryTest, GivesUpAtTheDeadlineAndSaysHowOftenItTried) {
  const auto down = store(always(StoreError::Server), {.deadline = 60s});
  const auto [error, text] = failure_of([&] { down->put("k", write("file", "x")); });
  EXPECT_EQ(error, StoreError::Server);
  EXPECT_THAT(text, HasSubstr("tried"));
  EXPECT_LE(clock_->paused, 60s);
  EXPECT_GT(clock_->paused, 25s);
  EXPECT_EQ(static_cast<int>(retries_.size()), clock_->pauses);
}

TEST_F(RetryTest, DoesNotLetAUserWaitForACheck) {
  const auto down = store(always(StoreError::Connection));
  EXPECT_EQ(failure_of([&] { down->check(); }).first, StoreError::Connection);
  EXPECT_LE(clock_->paused, 20s);
}

TEST_F(RetryTest, EndsWhenCancelled) {
  const auto down = store(always(StoreError::Server));
  down->cancel();
  EXPECT_EQ(failure_of([&] { down->put("k", write("file", "x")); }).first, StoreError::Cancelled);
  EXPECT_EQ(faulty_->calls(), 0);
}

// ---- the S3 library's errors --------------------------------------------------------------------------------------

TEST(S3Errors, AreClassedByTheirText) {
  const std::pair<const char*, StoreError> cases[] = {
      {"When uploading object with key 'p/x' in bucket 'bucket': AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.", StoreError::Throttled},
      {"AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", StoreError::Throttled},
      {"AWS Error UNKNOWN (HTTP status 500) during PutObject operation: No response body.", StoreError::Server},
      {"AWS Error INTERNAL_FAILURE during CompleteMultipartUpload operation: ", StoreError::Server},
      {"AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached; Details: Operation too slow.", StoreError::Timeout},
      {"AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file", StoreError::Truncated},
      {"AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server", StoreError::Connection},
      {"AWS Error ACCESS_DENIED during HeadObject operation: No response body.", StoreError::Denied},
      {"AWS Error SIGNATURE_DOES_NOT_MATCH during CreateMultipartUpload operation", StoreError::Denied},
      {"AWS Error INVALID_ACCESS_KEY_ID during CreateMultipartUpload operation", StoreError::Denied},
      {"AWS Error UNKNOWN (HTTP status 400) during HeadBucket operation: No response body.", StoreError::Denied},
      {"AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: The specified bucket does not exist", StoreError::NoBucket},
      {"AWS Error NO_SUCH_KEY during GetObject operation", StoreError::NotFound},
      {"AWS Error UNKNOWN (HTTP status 411) during UploadPart operation: MissingContentLength", StoreError::Refused},
  };
  for (const auto& [text, error] : cases) EXPECT_EQ(classify_s3_error(text), error) << text;
  EXPECT_THAT(s3_advice(StoreError::Denied, ""), HasSubstr("AWS_SECRET_ACCESS_KEY"));
  EXPECT_THAT(s3_advice(StoreError::Refused, "MissingContentLength"), HasSubstr("AWS_REQUEST_CHECKSUM_CALCULATION=when_required"));
}

TEST(S3Plugin, SaysWhatToDoWhenItIsNotThere) {
  try {
    (void)open_s3_store(parse_store_url("s3://bucket/runs"), {}, "libtroupe_no_such_plugin.so");
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::Unsupported);
    EXPECT_THAT(failure.what(), HasSubstr("troupe_s3"));
  }
}

class S3Test : public StoreTest {
 protected:
  std::unique_ptr<S3Server> server_;
  void SetUp() override {
    if (const auto why = S3Server::missing(); !why.empty()) GTEST_SKIP() << why;
    server_ = std::make_unique<S3Server>(root_.string() + "-s3");
    server_->make_bucket("bucket");
  }
  void TearDown() override {
    if (server_) fs::remove_all(server_->root());
  }
  std::unique_ptr<ObjectStore> open(const S3Settings& settings = {}) { return open_s3_store(parse_store_url(server_->url("bucket")), settings); }
};

TEST_F(S3Test, NamesWhatToDoForAWrongKeyAndNeverShowsIt) {
  S3Server::use_key("key", "wrong-secret-4711");
  for (const auto& call : std::vector<std::function<void(ObjectStore&)>>{[](auto& s) { s.check(); }, [this](auto& s) { s.put("k", write("file", "x")); },
                                                                         [](auto& s) { (void)s.list("k"); }}) {
    const auto [error, text] = failure_of([&] { call(*open()); });
    EXPECT_EQ(error, StoreError::Denied);
    EXPECT_THAT(text, HasSubstr("AWS_SECRET_ACCESS_KEY"));
    EXPECT_THAT(text, Not(HasSubstr("4711")));
  }
}

TEST_F(S3Test, NamesWhatToDoWhenThereAreNoCredentials) {
  ::unsetenv("AWS_ACCESS_KEY_ID");
  const auto [error, text] = failure_of([&] { open()->check(); });
  EXPECT_EQ(error, StoreError::Denied);
  EXPECT_THAT(text, HasSubstr("check AWS_ACCESS_KEY_ID"));
}

TEST_F(S3Test, FailsSoonWhenNobodyAnswers) {
  server_->kill();
  const auto [error, text] = failure_of([&] { open()->check(); });
  EXPECT_EQ(error, StoreError::Connection);
  EXPECT_THAT(text, HasSubstr("AWS_ENDPOINT_URL"));
}

TEST_F(S3Test, TakesTheEndpointFromTheEnvironment) {
  ::setenv("AWS_ENDPOINT_URL", server_->endpoint().c_str(), 1);
  EXPECT_NO_THROW(open_s3_store(parse_store_url("s3://bucket"))->check());
  ::unsetenv("AWS_ENDPOINT_URL");
}

TEST_F(S3Test, OutlastsAServerThatIsKilledHalfWayAndStartedAgain) {
  const auto store = with_retries(open({.part_bytes = 5 << 20}), {.first_delay = 50ms, .deadline = 30s});
  const auto file = write("file", noise(64 << 20));
  std::jthread trouble{[&] {
    std::this_thread::sleep_for(60ms);
    server_->kill();
    std::this_thread::sleep_for(300ms);
    server_->start();
  }};
  for (int i = 0; i < 2; ++i) store->put("big" + std::to_string(i), file);
  trouble.join();
  for (int i = 0; i < 2; ++i) {
    download(*store, "big" + std::to_string(i), 64 << 20, root_ / "back");
    EXPECT_TRUE(read(root_ / "back") == read(file));
  }
}

}  // namespace
}  // namespace troupe
