#include "../fine_tune/pair_training.hpp"

#include <troupe/data_iterator.hpp>
#include <troupe/fine_tune_pairs_streaming.hpp>

#include <ATen/ops/arange.h>

namespace troupe {

void fine_tune_pairs_streaming(TrainContext& context, const Config& config) {
  PairTraining training{context, config};
  auto train = context.dataset("train");
  const auto eval = context.dataset("eval");
  training.accelerator.prepare(training.model, training.optimizer);

  const auto collate = [](const BatchColumns& columns) {
    auto batch = columns.to_batch();  // pads to the longest of the batch
    const auto lengths_B = columns.lengths("input_ids");
    const auto places_T = at::arange(batch["input_ids"].size(1));
    batch.set("attention_mask", places_T.unsqueeze(0).lt(lengths_B.unsqueeze(1)).to(at::kLong));
    return batch;
  };
  const ColumnPadding padding{{"input_ids", {.value = static_cast<double>(training.tokenizer.pad_id())}}};
  auto train_batches = train.iter_batches({.batch_size = training.batch_size, .prefetch_batches = 2, .collate_fn = collate, .padding = padding});
  auto eval_batches = eval.iter_batches({.batch_size = training.eval_batch_size, .prefetch_batches = 2, .collate_fn = collate, .padding = padding});
  // The schedule is in updates of this rank's share; Ray's example counts rows of the whole data set.
  training.run(train_batches, eval_batches, train.num_batches(training.batch_size), [&] { return train.epoch(); });
  if (context.world_rank() == 0) std::fputs(train.stats().c_str(), stderr);
}

}  // namespace troupe
