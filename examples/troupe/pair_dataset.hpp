#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <troupe/data/data_loader.hpp>
#include <troupe/mrpc.hpp>
#include <troupe/wordpiece.hpp>
#include <utility>
#include <vector>

// B: batch, T: tokens

namespace troupe {

/// Pairs as BERT reads them, tokenised here and now: samples have "input_ids" and "token_type_ids"
/// [T] and "labels" [].
/// @param max_length pairs longer than this are cut, longest sentence first; 0: no limit.
[[nodiscard]] std::shared_ptr<const MapDataset> encode(const WordPiece& tokenizer,
                                                       const std::vector<SentencePair>& pairs,
                                                       std::size_t max_length);

/// Batches such samples: "input_ids", "attention_mask", "token_type_ids" [B,T] and "labels" [B],
/// padded on the right.
/// @param length every batch's T; 0: each batch's longest sample. A sample longer than `length`
/// throws
///               Failure{InvalidArgument}.
[[nodiscard]] Collate collate_pairs(std::int64_t pad_id, std::int64_t length = 0);

/// One batch without labels, for inference.
[[nodiscard]] Batch encode_pairs(const WordPiece& tokenizer,
                                 const std::vector<std::pair<std::string, std::string>>& pairs,
                                 std::size_t max_length);

}  // namespace troupe
