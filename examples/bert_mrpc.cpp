// The DataLoader example of Ray's Accelerate guide, natively: BERT on GLUE MRPC with that example's hyperparameters
// (4 ranks, batch 16 and 32, AdamW 2e-5, 100 warm-up steps, 3 epochs, seed 42). The loop is examples/fine_tune/fine_tune_pairs.cpp.
//
//   bert_mrpc --model bert-base-cased --data MRPC [--num_workers 4] [--storage_path results]
//
// Unlike the original it evaluates the whole dev split, keeps everything needed to resume, and steps its schedule once an update.
// Prints progress, accuracy and F1 of every epoch and where the run's files are. Run it again to go on where it stopped.
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/options.hpp>
#include <troupe/torch_trainer.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  troupe::Session session{argc, argv, {{"fine_tune_pairs", troupe::fine_tune_pairs}}};

  troupe::FineTuneOptions fine_tune;
  fine_tune.num_train_epochs = 3;
  fine_tune.learning_rate = 2e-5;
  fine_tune.num_warmup_steps = 100;
  fine_tune.max_grad_norm = 0;  // the original does not clip
  fine_tune.max_length = 128;
  troupe::TrainerOptions options;
  options.scaling.num_workers = 4;
  options.run.name = "bert_mrpc";
  options.run.checkpoint = {.num_to_keep = 1, .checkpoint_score_attribute = "f1", .checkpoint_score_order = "max"};
  CLI::App app{"Fine-tunes BERT on MRPC, as Ray's guide does.", "bert_mrpc"};
  troupe::add_options(app, fine_tune);
  troupe::add_options(app, options);
  if (const auto code = troupe::parse_options(app, argc, argv)) return *code;

  try {
    troupe::TorchTrainer trainer{session, "fine_tune_pairs", to_config(fine_tune), options};
    const auto result = trainer.fit();
    troupe::print_summary(result);
    return result.exit_code();
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "bert_mrpc: %s\n", failure.what());
    return 2;
  }
}
