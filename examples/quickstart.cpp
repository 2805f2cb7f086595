// Fine-tunes a real BERT to tell whether two sentences say the same, on two ranks, and tries the result.
//
//   make quickstart                                              installs, builds, runs
//   quickstart --model DIR --data DIR [--num_workers 2] [--placement processes]
//
// DIR of --model: a Hugging Face BERT (config.json, model.safetensors, vocab.txt).
// DIR of --data: MRPC as GLUE or Microsoft ship it, or pairs_train.tsv and pairs_dev.tsv.
// Prints progress, accuracy and F1 of every epoch, where the run's files are, and the verdict on two pairs.
#include <troupe/bert.hpp>
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/options.hpp>
#include <troupe/troupe.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/softmax.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace {

using troupe::Batch, troupe::BertForSequenceClassification;

/// The best checkpoint's verdict on two pairs, in words.
void classify(const std::filesystem::path& checkpoint, const std::filesystem::path& vocabulary, std::size_t max_length) {
  const auto tokenizer = troupe::WordPiece::from_pretrained(vocabulary);
  auto model = BertForSequenceClassification::from_pretrained(checkpoint);
  model->eval();
  at::NoGradGuard no_grad;
  const std::vector<std::pair<std::string, std::string>> pairs{
      {"And when the sun was up, he went out of the city to meet them.",
       "At sunrise he left the town in order to meet with them."},
      {"And when the sun was up, he went out of the city to meet them.",
       "When the sun had gone down, they brought the sick to him in the city."}};
  std::printf("\nThe best checkpoint says:\n");
  for (const auto& [first, second] : pairs) {
    const auto batch = troupe::encode_pairs(tokenizer, {{first, second}}, max_length);
    const auto same = at::softmax(model(batch).logits_BC, -1)[0][1].item<double>();
    std::printf("  %s (%.0f %% sure)\n    \"%s\"\n    \"%s\"\n", same > 0.5 ? "the same" : "not the same",
                100 * (same > 0.5 ? same : 1 - same), first.c_str(), second.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"fine_tune_pairs", troupe::fine_tune_pairs}}};

  troupe::FineTuneOptions fine_tune;
  troupe::TrainerOptions options;
  options.scaling.num_workers = 2;
  options.run.name = "quickstart";
  options.run.resume = troupe::Resume::Never;
  options.run.checkpoint.checkpoint_score_attribute = "accuracy";
  options.run.checkpoint.num_to_keep = 2;
  CLI::App app{"Fine-tunes a BERT on sentence pairs with two rank actors.", "quickstart"};
  troupe::add_options(app, fine_tune);
  troupe::add_options(app, options);
  if (const auto code = troupe::parse_options(app, argc, argv)) return *code;

  try {
    troupe::TorchTrainer trainer{session, "fine_tune_pairs", to_config(fine_tune), options};
    const auto result = trainer.fit();
    troupe::print_summary(result);
    if (result.ok() && result.best_checkpoint) {
      classify(result.best_checkpoint->checkpoint.path(), fine_tune.model, static_cast<std::size_t>(fine_tune.max_length));
    }
    return result.exit_code();
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "quickstart: %s\n", failure.what());
    return 2;
  }
}
