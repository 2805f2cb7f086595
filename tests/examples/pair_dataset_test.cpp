#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <troupe/pair_dataset.hpp>
#include <troupe/pair_scores.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using Ids = std::vector<std::int64_t>;

WordPiece words() {
  return WordPiece{{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"}};
}

Ids values(const at::Tensor& t) {
  const auto flat = t.reshape({-1}).contiguous();
  return {flat.const_data_ptr<std::int64_t>(), flat.const_data_ptr<std::int64_t>() + flat.numel()};
}

at::Tensor tensor(const Ids& v) {
  auto out = at::empty({static_cast<std::int64_t>(v.size())}, at::kLong);
  std::copy(v.begin(), v.end(), out.mutable_data_ptr<std::int64_t>());
  return out;
}

TEST(pair_dataset, BatchesArePaddedToTheLongestWithMaskAndTypes) {
  const auto data = encode(words(), {{"a b", "c", 1}, {"a", "b", 0}}, 0);
  ASSERT_EQ(data->size(), 2U);
  const auto batch = collate_pairs(0)({data->get(0), data->get(1)});
  EXPECT_EQ(values(batch["input_ids"]), (Ids{2, 5, 6, 3, 7, 3, 2, 5, 3, 6, 3, 0}));
  EXPECT_EQ(values(batch["attention_mask"]), (Ids{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0}));
  EXPECT_EQ(values(batch["token_type_ids"]), (Ids{0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0}));
  EXPECT_EQ(values(batch["labels"]), (Ids{1, 0}));
  EXPECT_EQ(batch["input_ids"].size(1), 6);
}

TEST(pair_dataset, BatchesMayHaveAFixedLength) {
  const auto data = encode(words(), {{"a b", "c", 1}}, 0);
  EXPECT_EQ(collate_pairs(0, 9)({data->get(0)})["input_ids"].size(1), 9);
  EXPECT_TRUE(test::failure_of([&] {
                (void)collate_pairs(0, 5)({data->get(0)});
              }).starts_with("InvalidArgument"));
  const auto cut = encode(words(), {{"a b", "c", 1}}, 5);
  EXPECT_EQ(values(cut->get(0)["input_ids"]), (Ids{2, 5, 3, 7, 3}));
}

TEST(pair_dataset, InferenceBatchesHaveNoLabels) {
  const auto batch = encode_pairs(words(), {{"a", "b"}, {"a b", "c"}}, 16);
  EXPECT_EQ(batch.find("labels"), nullptr);
  EXPECT_EQ(batch["input_ids"].size(0), 2);
}

TEST(pair_scores, AreGluesAccuracyAndF1) {
  PairScores scores;
  EXPECT_EQ(scores.accuracy(), 0);
  EXPECT_EQ(scores.f1(), 0);
  scores.add(tensor({1, 1, 0}), tensor({1, 0, 0}));
  scores.add(tensor({0, 1}), tensor({1, 1}));
  EXPECT_DOUBLE_EQ(scores.accuracy(), 3.0 / 5);
  EXPECT_DOUBLE_EQ(scores.f1(), 2.0 * 2 / (3 + 3));
  EXPECT_EQ(scores.count(), 5);
  EXPECT_TRUE(test::failure_of([&] {
                scores.add(tensor({1}), tensor({1, 0}));
              }).starts_with("InvalidArgument"));
}

}  // namespace
}  // namespace troupe
