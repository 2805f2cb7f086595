#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <troupe/errors.hpp>
#include <troupe/run_options.hpp>

namespace troupe {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(StoragePath, IsMadeOfPathsStringsAndLiterals) {
  EXPECT_EQ(StoragePath{"results"}.directory(), "results");
  EXPECT_EQ(StoragePath{std::filesystem::path{"a"} / "b"}.directory(), "a/b");
  EXPECT_TRUE(StoragePath{std::string{"s3://bucket/runs"}}.is_url());
  EXPECT_FALSE(StoragePath{"some/s3:/dir"}.is_url());
  EXPECT_THROW((void)StoragePath{"s3://bucket"}.directory(), Failure);
  std::stringstream text;
  text << StoragePath{"my results"};
  StoragePath back;
  text >> back;
  EXPECT_EQ(back, StoragePath{"my results"});
}

TEST(StoreUrl, IsTakenApart) {
  const auto url = parse_store_url("s3://my-bucket/some//prefix/?region=eu-central-1&endpoint_override=http://localhost:9000");
  EXPECT_EQ(url.bucket, "my-bucket");
  EXPECT_EQ(url.prefix, "some/prefix");
  EXPECT_EQ(url.region, "eu-central-1");
  EXPECT_EQ(url.endpoint, "http://localhost:9000");
  EXPECT_EQ(url.text(), "s3://my-bucket/some/prefix");
  EXPECT_EQ(parse_store_url("s3://bucket").prefix, "");
}

TEST(StoreUrl, SaysWhatIsWrongWithIt) {
  const auto refused = [](const std::string& url) -> std::string {
    try {
      (void)parse_store_url(url);
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), Errc::InvalidConfig);
      return failure.what();
    }
    return "nothing was refused";
  };
  EXPECT_THAT(refused("gs://bucket/x"), HasSubstr("scheme 'gs' is unknown"));
  EXPECT_THAT(refused("s3:///x"), HasSubstr("names no bucket"));
  EXPECT_THAT(refused("s3://Bad_Bucket!/x"), HasSubstr("no bucket's name"));
  EXPECT_THAT(refused("s3://bucket/a/../b"), HasSubstr("'..'"));
  EXPECT_THAT(refused("s3://bucket/a?regoin=x"), HasSubstr("did you mean 'region'?"));
  for (const auto* secret : {"s3://AKIA123:hidden@bucket/x", "s3://bucket/x?secret_key=hidden", "s3://bucket/x?session_token=hidden"}) {
    EXPECT_THAT(refused(secret), HasSubstr("AWS_SECRET_ACCESS_KEY"));
    EXPECT_THAT(refused(secret), Not(HasSubstr("hidden")));
  }
  RunConfig run;
  run.storage_path = "gs://bucket";
  EXPECT_THROW(validate(run), Failure);
  run.storage_path = "s3://bucket/runs";
  EXPECT_NO_THROW(validate(run));
}

}  // namespace
}  // namespace troupe
