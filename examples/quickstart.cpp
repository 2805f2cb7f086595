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
#include <troupe/mrpc.hpp>
#include <troupe/pair_dataset.hpp>
#include <troupe/troupe.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <string>

namespace {

using troupe::BertForSequenceClassification;

/// The best checkpoint's verdict on two pairs it was not trained on, one of each kind, in words.
void classify(const std::filesystem::path& checkpoint, const troupe::FineTuneOptions& options) {
  const auto tokenizer = troupe::WordPiece::from_pretrained(checkpoint);
  auto model = BertForSequenceClassification::from_pretrained(checkpoint);
  model->eval();
  at::NoGradGuard no_grad;
  const auto pairs = troupe::load_pairs(options.data, options.train_file, options.eval_file).eval;
  std::printf("\nThe best checkpoint says:\n");
  for (const std::int64_t label : {1, 0}) {
    const auto pair = std::find_if(pairs.begin(), pairs.end(), [label](const auto& p) { return p.label == label; });
    if (pair == pairs.end()) continue;
    const auto batch = troupe::encode_pairs(tokenizer, {{pair->first, pair->second}}, static_cast<std::size_t>(options.max_length));
    const auto same = at::softmax(model(batch).logits_BC, -1)[0][1].item<double>();
    std::printf("  %.0f %% sure that these say %s (the data says: %s)\n    \"%s\"\n    \"%s\"\n", 100 * (same > 0.5 ? same : 1 - same),
                same > 0.5 ? "the same" : "something else", label == 1 ? "the same" : "something else", pair->first.c_str(),
                pair->second.c_str());
  }
}

/// Every start is a run of its own: quickstart-<date>-<time>.
std::string new_name() {
  char text[64];
  const auto now = std::time(nullptr);
  std::tm local{};
  (void)std::strftime(text, sizeof text, "quickstart-%Y%m%d-%H%M%S", localtime_r(&now, &local));
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"fine_tune_pairs", troupe::fine_tune_pairs}}};

  troupe::FineTuneOptions fine_tune;
  fine_tune.learning_rate = 1e-4;  // MiniLM is small: it bears more than BERT's usual 2e-5 to 5e-5
  troupe::TrainerOptions options;
  options.scaling.num_workers = 2;
  options.run.name = new_name();
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
      classify(result.best_checkpoint->checkpoint.path(), fine_tune);
    }
    return result.exit_code();
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "quickstart: %s\n", failure.what());
    return 2;
  }
}
