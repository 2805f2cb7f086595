#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <troupe/sequence_batching.hpp>

#include "golden.hpp"

namespace troupe {
namespace {

using test::failure_of;
using Ids = std::vector<std::int64_t>;

std::vector<PackedSequence> all_of(SequencePacker& packer) {
  std::vector<PackedSequence> out;
  while (auto next = packer.next()) out.push_back(*std::move(next));
  return out;
}

TEST(SequencePacker, CutsDocumentsWhereASequenceIsFull) {
  SequencePacker packer{{.context_length = 4, .separator = 9, .pad_id = 0}};
  packer.add(Ids{1, 2});
  packer.add(Ids{3, 4, 5});
  packer.finish();
  const auto rows = all_of(packer);
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].ids, (Ids{1, 2, 9, 3}));
  EXPECT_EQ(rows[0].labels, (Ids{1, 2, 9, -100}));
  EXPECT_EQ(rows[0].position_ids, (Ids{0, 1, 2, 0}));
  EXPECT_EQ(rows[0].boundaries, (Ids{0, 3, 4}));
  EXPECT_EQ(rows[1].ids, (Ids{4, 5, 9, 0}));
  EXPECT_EQ(rows[1].labels, (Ids{4, 5, 9, -100}));
  EXPECT_EQ(rows[1].segment_ids, (std::vector<std::int32_t>{1, 1, 1, 0}));
  EXPECT_EQ(rows[1].boundaries, (Ids{0, 3}));
}

TEST(SequencePacker, DropsALastSequenceThatIsNotFull) {
  SequencePacker packer{{.context_length = 4, .drop_last = true}};
  packer.add(Ids{1, 2, 3, 4, 5});
  packer.finish();
  EXPECT_EQ(all_of(packer).size(), 1U);
}

TEST(SequencePacker, KeepsDocumentsWholeWhereTheyFit) {
  SequencePacker packer{{.context_length = 5, .mode = PackMode::Whole, .separator = 9}};
  packer.add(Ids{1, 2, 3});                   // 4 with the separator
  packer.add(Ids{4, 5, 9}, Ids{-100, 5, 9});  // has it already
  packer.add(Ids{6, 7, 8, 8, 8, 8, 8});       // cut
  packer.add(Ids{7});                         // beside the second
  packer.finish();
  const auto rows = all_of(packer);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].ids, (Ids{6, 7, 8, 8, 9}));
  EXPECT_EQ(rows[1].ids, (Ids{4, 5, 9, 7, 9}));
  EXPECT_EQ(rows[1].labels, (Ids{-100, 5, 9, -100, 9}));
  EXPECT_EQ(rows[1].position_ids, (Ids{0, 1, 2, 0, 1}));
  EXPECT_EQ(rows[2].ids, (Ids{1, 2, 3, 9, 0}));
}

TEST(SequencePacker, LosesNoIdAndKeepsToItsMemory) {
  std::mt19937 draw{3};
  for (const auto mode : {PackMode::Split, PackMode::Whole}) {
    SequencePacker packer{
        {.context_length = 16, .mode = mode, .separator = 999, .open_sequences = 3}};
    std::multiset<std::int64_t> in, out;
    std::size_t rows = 0;
    const auto take = [&] {
      while (const auto row = packer.next()) {
        ++rows;
        ASSERT_EQ(row->ids.size(), 16U);
        EXPECT_LE(row->boundaries.back(), 16);
        for (std::int64_t i = 0; i < row->boundaries.back(); ++i)
          out.insert(row->ids[static_cast<std::size_t>(i)]);
      }
    };
    std::int64_t next = 1000, total = 0;
    for (int document = 0; document < 200; ++document) {
      Ids ids(draw() % 15);
      for (auto& id : ids) in.insert(id = next++);
      if (!ids.empty()) in.insert(999);
      total += static_cast<std::int64_t>(ids.size()) + (ids.empty() ? 0 : 1);
      packer.add(ids);
      take();
    }
    packer.finish();
    take();
    EXPECT_EQ(in, out);
    if (mode == PackMode::Split) EXPECT_EQ(rows, static_cast<std::size_t>((total + 15) / 16));
  }
}

TEST(SequencePacker, RefusesWhatCannotBe) {
  EXPECT_EQ(failure_of([] { SequencePacker{{}}; }),
            "InvalidArgument context_length should be at least 1");
  EXPECT_EQ(failure_of([] {
              SequencePacker packer{{.context_length = 4}};
              packer.add(Ids{1, 2}, Ids{1});
            }),
            "InvalidArgument a sequence has 2 ids but 1 labels");
}

TEST(PadRows, PadsOnEitherSideToAMultiple) {
  const std::vector<Ids> rows{{1, 2, 3}, {4}}, labels{{-100, 2, 3}, {4}};
  const auto right = pad_rows(rows, {.pad_id = 7, .multiple_of = 4}, labels);
  EXPECT_EQ(right.length, 4U);
  EXPECT_EQ(right.ids, (Ids{1, 2, 3, 7, 4, 7, 7, 7}));
  EXPECT_EQ(right.attention_mask, (Ids{1, 1, 1, 0, 1, 0, 0, 0}));
  EXPECT_EQ(right.labels, (Ids{-100, 2, 3, -100, 4, -100, -100, -100}));
  const auto left = pad_rows(rows, {.side = PadSide::Left}, {}, rows);
  EXPECT_EQ(left.ids, (Ids{1, 2, 3, 0, 0, 4}));
  EXPECT_EQ(left.attention_mask, (Ids{1, 1, 1, 0, 0, 1}));
  EXPECT_EQ(left.type_ids, left.ids);
  EXPECT_EQ(failure_of([&] { (void)pad_rows(rows, {.length = 2}); }),
            "InvalidArgument a row of 3 ids does not fit into the length 2");
  EXPECT_EQ(failure_of([&] {
              (void)pad_rows(rows, {}, std::vector<Ids>{{1, 2}, {3}});
            }),
            "InvalidArgument row 0 has another number of labels than of ids");
  EXPECT_EQ(pad_rows({}, {}).rows, 0U);
}

TEST(BucketByLength, TakesEveryRowOnceAndLikeLengthsTogether) {
  std::mt19937 draw{5};
  std::vector<std::size_t> lengths(1003), order(lengths.size());
  for (auto& length : lengths) length = 1 + draw() % 500;
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), draw);
  const auto batches = bucket_by_length(lengths, order, {.batch_size = 8, .window = 25, .seed = 1});
  std::vector<std::size_t> seen;
  std::size_t padded = 0, real = 0;
  for (const auto& batch : batches) {
    EXPECT_EQ(batch.size(), &batch == &batches.back() ? 3U : 8U);
    std::size_t longest = 0;
    for (const auto row : batch) {
      seen.push_back(row);
      longest = std::max(longest, lengths[row]);
      real += lengths[row];
    }
    padded += longest * batch.size();
  }
  std::ranges::sort(seen);
  std::ranges::sort(order);
  EXPECT_EQ(seen, order);
  EXPECT_LT(static_cast<double>(padded), 1.1 * static_cast<double>(real));
  EXPECT_EQ(bucket_by_length(lengths, order, {.batch_size = 8, .drop_last = true}).size(), 125U);
  EXPECT_NE(bucket_by_length(lengths, order, {.batch_size = 8, .seed = 1}),
            bucket_by_length(lengths, order, {.batch_size = 8, .seed = 2}));
}

TEST(MaskPrompt, LeavesTheAnswer) { EXPECT_EQ(mask_prompt(Ids{5, 6, 7}, 2), (Ids{-100, -100, 7})); }

}  // namespace
}  // namespace troupe
