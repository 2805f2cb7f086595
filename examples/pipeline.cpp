// A pipeline whose stages are the program's own actors: they feed a training run, and another one listens to it.
//
//   range of numbers ─► Sampler actor (draws points from a number) ─► two Labeller actors ─► 2 ranks fit the line ─► Listener actor
//
// The stages are steps of a data set (`map_batches_on`). Ranks pull: an actor is sent no more than `concurrency` batches at a time,
// so the slowest part sets the pace and nothing piles up. A stage that dies, or does not answer in time, ends the run, by name.
//
//     build/release/examples/pipeline [storage directory]
//
// prints the losses, how many batches each stage has worked on, the line that was learned, and "ok".
#include <troupe/data_iterator.hpp>
#include <troupe/dataset/sources.hpp>
#include <troupe/dataset_actors.hpp>
#include <troupe/trainer.hpp>

#include <arrow/api.h>
#include <caf/all.hpp>

#include <atomic>
#include <cmath>
#include <cstdio>

namespace {

using Rows = std::shared_ptr<arrow::RecordBatch>;

std::atomic<int> batches_sampled{0}, batches_labelled{0};

const double* column(const Rows& rows, const char* name) {
  return static_cast<const arrow::DoubleArray&>(*rows->GetColumnByName(name)).raw_values();
}

std::shared_ptr<arrow::Array> numbers(const std::vector<double>& values) {
  arrow::DoubleBuilder builder;
  if (!builder.AppendValues(values).ok()) throw std::bad_alloc{};
  return builder.Finish().ValueOrDie();
}

// The same number gives the same point each time: what was lost with a rank is made again.
caf::behavior sampler() {
  return {[](const troupe::MapBatch& order) {
    ++batches_sampled;
    const auto& ids = static_cast<const arrow::Int64Array&>(*order.rows->GetColumnByName("id"));
    std::vector<double> x;
    for (std::int64_t i = 0; i < ids.length(); ++i) x.push_back(std::fmod(static_cast<double>(ids.Value(i)) * 0.618034, 2.0) - 1);
    return troupe::MappedBatch{arrow::RecordBatch::Make(arrow::schema({arrow::field("x", arrow::float64())}), ids.length(), {numbers(x)})};
  }};
}

caf::behavior labeller() {
  return {[](const troupe::MapBatch& order) {
    ++batches_labelled;
    std::vector<double> y;
    for (std::int64_t i = 0; i < order.rows->num_rows(); ++i) y.push_back(2 * column(order.rows, "x")[i] + 1);
    return troupe::MappedBatch{order.rows->AddColumn(1, "y", numbers(y)).ValueOrDie()};
  }};
}

// y = slope x + offset by gradient descent; gradients are averaged over the ranks.
void fit_line(troupe::TrainContext& context, const troupe::Config& config) {
  const auto points = context.dataset("points");
  float line[2] = {0, 0};  // slope, offset
  for (auto epoch = points.epoch(); epoch < config.get<int>("epochs"); epoch = points.epoch()) {
    float loss = 0;
    for (const auto& batch : points.iter_batches({.batch_size = 50, .drop_last = true})) {
      const auto* x = batch["x"].const_data_ptr<double>();
      const auto* y = batch["y"].const_data_ptr<double>();
      float sums[3] = {0, 0, 0};  // d loss / d slope, d loss / d offset, loss
      for (int i = 0; i < 50; ++i) {
        const float error = line[0] * static_cast<float>(x[i]) + line[1] - static_cast<float>(y[i]);
        sums[0] += 2 * error * static_cast<float>(x[i]) / 50;
        sums[1] += 2 * error / 50;
        sums[2] += error * error / 50;
      }
      context.communicator().all_reduce({sums, sizeof sums, troupe::DType::F32}, troupe::ReduceOp::Mean).wait().or_throw();
      for (int i = 0; i < 2; ++i) line[i] -= 0.3F * sums[i];
      loss = sums[2];
    }
    if (context.world_rank() == 0) context.report({{"epoch", epoch + 1}, {"loss", double{loss}}, {"slope", double{line[0]}}, {"offset", double{line[1]}}});
  }
}

caf::behavior listener(caf::event_based_actor* self, const caf::actor& boss) {
  self->set_default_handler(caf::drop);  // news that do not matter here
  return {
      [](const troupe::ReportArrived& news) {
        const auto& metrics = news.report.metrics;
        std::printf("epoch %.0f: loss %.2e\n", *metrics.number("epoch"), *metrics.number("loss"));
      },
      [self, boss](const troupe::RunEnded& news) {
        self->send(boss, news.result);
        self->quit();
      },
  };
}

}  // namespace

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::Result)

int main(int argc, char** argv) {
  caf::actor_system_config config;
  troupe::register_types(config);
  caf::actor_system system{config};
  caf::scoped_actor self{system};

  const auto sampling = system.spawn(sampler);
  const std::vector<caf::actor> labelling{system.spawn(labeller), system.spawn(labeller)};
  const auto make_points = [&](const troupe::Config&) {
    const auto sampled = troupe::map_batches_on(troupe::Dataset{troupe::range_source(4000, 500)}, system, sampling, {.name = "sample"});
    return troupe::map_batches_on(sampled, system, labelling, {.name = "label", .concurrency = 4});
  };
  // Stages are actors of this process, and so the ranks are its threads.
  const troupe::Session session{argc, argv, {{"fit_line", fit_line}}, {{"points", make_points}}};
  troupe::TrainerOptions options;
  options.scaling.num_workers = 2;
  options.run.storage_path = argc > 1 ? argv[1] : "results";
  options.run.resume = troupe::Resume::Never;
  (void)troupe::spawn_trainer(system, session, "fit_line", {{"epochs", 3}}, options, {system.spawn(listener, caf::actor{self})});

  bool right = false;
  self->receive([&](const troupe::Result& result) {
    if (!result.ok()) return (void)std::printf("failed: %s\n", result.error->message.c_str());
    const double slope = *result.metrics.number("slope"), offset = *result.metrics.number("offset");
    std::printf("y = %.3f x + %.3f after %d batches sampled and %d labelled\n", slope, offset, batches_sampled.load(), batches_labelled.load());
    right = std::abs(slope - 2) < 0.01 && std::abs(offset - 1) < 0.01 && batches_sampled > 0 && batches_labelled > 0;
  });
  std::puts(right ? "ok" : "wrong");
  return right ? 0 : 1;
}
