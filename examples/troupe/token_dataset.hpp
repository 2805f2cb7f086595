#pragma once

#include <troupe/data/data_loader.hpp>
#include <troupe/instruct_data.hpp>

#include <memory>
#include <span>
#include <vector>

// B: rows of a batch, T: tokens

namespace troupe {

/// Rows as LlamaForCausalLM reads them, padded on the right: "input_ids", "labels" [B,T]; "attention_mask" where rows differ in
/// length; "document_ids" and "position_ids" of rows that were packed whole.
[[nodiscard]] Batch to_batch(std::span<const TokenRow> rows, std::int64_t pad_id);

/// A sample a row.
[[nodiscard]] std::shared_ptr<const MapDataset> row_dataset(std::shared_ptr<const std::vector<TokenRow>> rows);
[[nodiscard]] Collate collate_rows(std::int64_t pad_id);

/// A sample a batch of `batch_size` rows of like length, so that little is padding (Transformers' group_by_length): for a
/// DataLoader with a batch_size of 1 and `collate_grouped`. The batches stay the same in every epoch, their order is the loader's.
[[nodiscard]] std::shared_ptr<const MapDataset> grouped_dataset(std::shared_ptr<const std::vector<TokenRow>> rows, std::int64_t batch_size, std::int64_t pad_id,
                                                                std::uint64_t seed);
[[nodiscard]] Batch collate_grouped(std::vector<TensorDict> samples);

}  // namespace troupe
