// The Ray Data example of Ray's Accelerate guide, natively: BERT on GLUE MRPC with that example's hyperparameters (4 ranks, batch 16 and 32, AdamW 2e-5,
// 100 warm-up steps, 3 epochs, seed 42), from data sets that stream. No file is read as a whole: each rank reads its own lines, tokenises them on threads of
// its own, and pads batch by batch, beside training. The loop is the one of bert_mrpc (examples/fine_tune), the data sets are in examples/fine_tune_streaming.
//
//   bert_mrpc_streaming --model bert-base-cased --data MRPC [--num_workers 4] [--storage_path results]
//
// Prints progress, accuracy and F1 of every epoch, what each stage of the data took, and where the run's files are. Run it again to go on where it stopped,
// to the row, also with another number of ranks.
#include <troupe/fine_tune_pairs.hpp>
#include <troupe/fine_tune_pairs_streaming.hpp>
#include <troupe/options.hpp>
#include <troupe/torch_trainer.hpp>

#include <cstdio>

int main(int argc, char** argv) {
  // Named here, since ranks may be processes: no code travels.
  troupe::Session session{argc, argv, {{"fine_tune", troupe::fine_tune_pairs_streaming}}, {{"train", troupe::train_pairs}, {"eval", troupe::eval_pairs}}};

  troupe::FineTuneOptions fine_tune;
  fine_tune.num_train_epochs = 3;
  fine_tune.learning_rate = 2e-5;
  fine_tune.num_warmup_steps = 100;
  fine_tune.max_grad_norm = 0;  // the original does not clip
  fine_tune.max_length = 128;
  troupe::TrainerOptions options;
  options.scaling.num_workers = 4;
  options.run.name = "bert_mrpc_streaming";
  options.run.checkpoint = {.num_to_keep = 1, .checkpoint_score_attribute = "f1", .checkpoint_score_order = "max"};
  CLI::App app{"Fine-tunes BERT on MRPC from streamed data sets, as Ray's guide does.", "bert_mrpc_streaming"};
  troupe::add_options(app, fine_tune);
  troupe::add_options(app, options);
  if (const auto code = troupe::parse_options(app, argc, argv)) return *code;

  try {
    troupe::TorchTrainer trainer{session, "fine_tune", to_config(fine_tune), options};
    const auto result = trainer.fit();
    troupe::print_summary(result);
    return result.exit_code();
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "bert_mrpc_streaming: %s\n", failure.what());
    return 2;
  }
}
