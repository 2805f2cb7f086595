#include "pair_training.hpp"

#include <troupe/fine_tune_pairs.hpp>
#include <troupe/mrpc.hpp>
#include <troupe/pair_dataset.hpp>

namespace troupe {

void fine_tune_pairs(TrainContext& context, const Config& config) {
  PairTraining training{context, config};
  const auto data = load_pairs(config.get<std::string>("data"), config.get<std::string>("train_file"), config.get<std::string>("eval_file"));
  const auto max_length = static_cast<std::size_t>(training.max_length);
  const auto collate = collate_pairs(training.tokenizer.pad_id());
  DataLoader train{encode(training.tokenizer, data.train, max_length),
                   {.batch_size = training.batch_size, .shuffle = true, .seed = training.seed, .collate = collate}};
  DataLoader eval{encode(training.tokenizer, data.eval, max_length), {.batch_size = training.eval_batch_size, .collate = collate}};
  training.accelerator.prepare(training.model, training.optimizer, train, eval);
  training.run(train, eval, train.size(), [&] { return train.epoch(); });
}

}  // namespace troupe
