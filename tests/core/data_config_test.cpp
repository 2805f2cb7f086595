#include <troupe/data_config.hpp>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace troupe {

class Dataset {};

namespace {

using testing::HasSubstr;

const DatasetFunctions datasets{{"train", [](const Config&) { return Dataset{}; }}, {"eval", [](const Config&) { return Dataset{}; }}};

std::string problem_of(const DataConfig& config, Errc code, const DatasetFunctions& known = datasets) {
  try {
    validate(config, known);
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), code);
    return failure.what();
  }
  return "none";
}

TEST(DataConfig, SplitsEveryDatasetUnlessNamesAreGiven) {
  EXPECT_TRUE(DataConfig{}.splits("train"));
  const DataConfig some{.datasets_to_split = {{"train"}}, .options = {}, .per_dataset = {}};
  EXPECT_TRUE(some.splits("train"));
  EXPECT_FALSE(some.splits("eval"));
  const DataConfig none{.datasets_to_split = std::set<std::string>{}, .options = {}, .per_dataset = {}};
  EXPECT_FALSE(none.splits("train"));
}

TEST(DataConfig, HasOptionsOfItsOwnForADataset) {
  DataConfig config;
  config.options.equal = SplitEqual::Truncate;
  config.per_dataset["eval"] = {.equal = SplitEqual::Uneven};
  EXPECT_EQ(config.options_of("train").equal, SplitEqual::Truncate);
  EXPECT_EQ(config.options_of("eval").equal, SplitEqual::Uneven);
}

TEST(DataConfig, NamesWhatIsWrong) {
  DataConfig config;
  EXPECT_EQ(problem_of(config, Errc::Ok), "none");
  config.datasets_to_split = {"trains"};
  EXPECT_THAT(problem_of(config, Errc::NotFound), HasSubstr("did you mean 'train'?"));
  EXPECT_THAT(problem_of(config, Errc::NotFound, {}), HasSubstr("the session has none"));
  config.datasets_to_split.reset();
  config.per_dataset["something"] = {};
  EXPECT_THAT(problem_of(config, Errc::NotFound), HasSubstr("the session has: eval, train"));
  config.per_dataset.clear();
  config.per_dataset["eval"].num_threads = -1;
  EXPECT_THAT(problem_of(config, Errc::InvalidConfig), HasSubstr("per_dataset[\"eval\"].num_threads = -1"));
  config.per_dataset.clear();
  config.options.memory_bytes = -5;
  EXPECT_THAT(problem_of(config, Errc::InvalidConfig), HasSubstr("options.memory_bytes = -5"));
}

}  // namespace
}  // namespace troupe
