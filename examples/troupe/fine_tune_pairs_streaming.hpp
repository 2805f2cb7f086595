#pragma once

#include <troupe/config.hpp>
#include <troupe/dataset/dataset.hpp>
#include <troupe/train_context.hpp>

namespace troupe {

/// As `fine_tune_pairs`, from the data sets "train" and "eval" of the session: batches are made of rows that stream in, tokenised on their way.
void fine_tune_pairs_streaming(TrainContext& context, const Config& config);

/// Those data sets: the pairs' files ("data", "train_file", "eval_file" of the configuration, as `find_pairs` looks for them), read line by line, tokenised by
/// the vocabulary in "model". Training's rows come in another order every epoch.
[[nodiscard]] Dataset train_pairs(const Config& config);
[[nodiscard]] Dataset eval_pairs(const Config& config);

}  // namespace troupe
