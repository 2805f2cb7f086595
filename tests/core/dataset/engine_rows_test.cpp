#include <gtest/gtest.h>

#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <troupe/dataset/row.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

std::shared_ptr<arrow::Schema> all_types() {
  return arrow::schema({arrow::field("flag", arrow::boolean()), arrow::field("small", arrow::int8()), arrow::field("count", arrow::uint32()),
                        arrow::field("half", arrow::float32()), arrow::field("text", arrow::utf8()), arrow::field("bytes", arrow::large_binary()),
                        arrow::field("tokens", arrow::list(arrow::int32())), arrow::field("words", arrow::large_list(arrow::utf8()))});
}

TEST(Record, ComesBackFromColumnsOfEveryType) {
  const std::vector<Record> records{
      {{"flag", true}, {"small", std::int64_t{-5}}, {"count", std::int64_t{4'000'000'000}}, {"half", 0.5}, {"text", "Straße"}, {"bytes", std::string("\0x", 2)},
       {"tokens", std::vector<std::int64_t>{1, 2, 3}}, {"words", std::vector<std::string>{"a", ""}}},
      {{"flag", Value{}}, {"small", Value{}}, {"count", Value{}}, {"half", Value{}}, {"text", Value{}}, {"bytes", Value{}}, {"tokens", Value{}}, {"words", Value{}}},
      {{"flag", false}, {"small", std::int64_t{0}}, {"count", std::int64_t{0}}, {"half", -2.0}, {"text", ""}, {"bytes", ""},
       {"tokens", std::vector<std::int64_t>{}}, {"words", std::vector<std::string>{}}}};
  const auto batch = to_record_batch(records, all_types());
  EXPECT_EQ(to_records(*batch), records);
  EXPECT_EQ(to_records(*batch->Slice(1, 2)), (std::vector<Record>{records[1], records[2]}));
}

template <typename Call>
std::string failure_of(Call call) {
  try {
    call();
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(Record, SaysWhichValueDoesNotFit) {
  EXPECT_NE(failure_of([] { static_cast<void>(to_record_batch({{{"small", std::int64_t{200}}}}, all_types())); }).find("\"small\" is no int8"), std::string::npos);
  EXPECT_NE(failure_of([] { static_cast<void>(to_record_batch({{{"text", std::int64_t{1}}}}, all_types())); }).find("\"text\" is no string"), std::string::npos);
  EXPECT_NE(failure_of([] { static_cast<void>(to_record_batch({{{"other", std::int64_t{1}}}}, all_types())); }).find("\"other\""), std::string::npos);
  EXPECT_NE(failure_of([] { static_cast<void>(schema_of({{"x", Value{}}})); }).find("\"x\""), std::string::npos);
}

TEST(Row, SaysWhichColumnsThereAre) {
  const auto batch = to_record_batch({{{"small", std::int64_t{1}}}}, all_types());
  const Row row{*batch, 0};
  EXPECT_EQ(row.get<std::int64_t>("small"), 1);
  EXPECT_EQ(row.get<double>("small"), 1.0);
  EXPECT_TRUE(row.is_null("text"));
  EXPECT_NE(failure_of([&] { static_cast<void>(row.value("nope")); }).find("flag, small"), std::string::npos);
  EXPECT_NE(failure_of([&] { static_cast<void>(row.get<std::string>("text")); }).find("is null"), std::string::npos);
  EXPECT_NE(failure_of([&] { static_cast<void>(row.get<std::string>("small")); }).find("int8"), std::string::npos);
}

}  // namespace
}  // namespace troupe
