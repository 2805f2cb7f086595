// The streamed pairs are tokenised as the DataLoader's are: each list beside its own label.
#include <troupe/fine_tune_pairs_streaming.hpp>
#include <troupe/wordpiece.hpp>

#include <arrow/api.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace troupe {
namespace {

TEST(PairStream, KeepsEachListBesideItsLabel) {
  const auto directory = std::filesystem::temp_directory_path() / ("troupe_pair_stream_" + std::to_string(::getpid()));
  std::filesystem::create_directories(directory);
  std::ofstream{directory / "vocab.txt"} << "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n";
  std::ofstream{directory / "pairs.tsv"} << "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\tx\ty\ta b\tc\n0\tx\ty\tc\ta\n1\tx\ty\tb b b\ta\n";
  const Config config{{"model", directory.string()}, {"data", directory.string()}, {"train_file", "pairs.tsv"}, {"eval_file", "pairs.tsv"}, {"max_length", 16}, {"seed", 1}};
  const auto table = eval_pairs(config).to_table()->CombineChunks().ValueOrDie();
  const auto tokenizer = WordPiece::from_pretrained(directory);
  const std::vector<std::pair<std::string, std::string>> pairs{{"a b", "c"}, {"c", "a"}, {"b b b", "a"}};
  ASSERT_EQ(table->num_rows(), 3);
  const auto& lists = dynamic_cast<const arrow::ListArray&>(*table->GetColumnByName("input_ids")->chunk(0));
  const auto& labels = dynamic_cast<const arrow::Int64Array&>(*table->GetColumnByName("labels")->chunk(0));
  for (std::int64_t i = 0; i < 3; ++i) {
    const auto& values = dynamic_cast<const arrow::Int64Array&>(*lists.value_slice(i));
    const std::vector<std::int64_t> ids{values.raw_values(), values.raw_values() + values.length()};
    EXPECT_EQ(ids, tokenizer.encode(pairs[static_cast<std::size_t>(i)].first, pairs[static_cast<std::size_t>(i)].second, 16).ids) << "row " << i;
    EXPECT_EQ(labels.Value(i), i == 1 ? 0 : 1);
  }
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace troupe
