// Training inside a program that has its own CAF actor system and its own actors.
//
// An Observer actor of this program gets everything that happens in the run as messages, and asks the Trainer to stop
// once the loss is small enough: all ranks then stop after the same step. The train function fits y = 2x + 1 on two
// ranks, with a gradient written by hand, to keep the eye on the actors.
//
//     build/release/examples/embed [storage directory]
//
// prints every 20th report, what was learned, and "ok"; exits with 0 only when the fit is right and both ranks agree.

#include <array>
#include <caf/all.hpp>
#include <cmath>
#include <cstdio>
#include <troupe/session.hpp>
#include <troupe/trainer.hpp>

namespace {

constexpr double good_loss = 1e-6;

// Each rank sees every second point; the gradients are averaged over the ranks, so both hold the same weights.
void fit_line(troupe::TrainContext& context, const troupe::Config& config) {
  const auto lr = config.get<float>("lr");
  float slope = 0;
  float offset = 0;
  for (int step = 0; !context.should_stop(); ++step) {
    std::array<float, 3> sums{};  // d loss / d slope, d loss / d offset, loss
    for (int i = context.world_rank(); i < 64; i += context.world_size()) {
      const float x = static_cast<float>(i) / 32 - 1;
      const float error = slope * x + offset - (2 * x + 1);
      sums[0] += 2 * error * x / 32;
      sums[1] += 2 * error / 32;
      sums[2] += error * error / 32;
    }
    context.communicator()
        .all_reduce({sums.data(), sizeof sums, troupe::DType::F32}, troupe::ReduceOp::Mean)
        .wait()
        .or_throw();
    slope -= lr * sums[0];
    offset -= lr * sums[1];
    context.report({{"step", step}, {"loss", double{sums[2]}}, {"slope", double{slope}}, {"offset", double{offset}}});
  }
}

struct ObserverState {
  static inline const char* name = "observer";
  caf::actor trainer;
  caf::actor boss;  // is told the result
  std::size_t reports = 0;
  bool asked = false;
};

caf::behavior observer(caf::stateful_actor<ObserverState>* self, caf::actor boss) {
  self->state.boss = std::move(boss);
  return {
      [self](const caf::actor& trainer) { self->state.trainer = trainer; },
      [](const troupe::RunStarted& news) { std::printf("run %s in %s\n", news.run_name.c_str(), news.path.c_str()); },
      [self](const troupe::ReportArrived& news) {
        auto& state = self->state;
        const auto& report = news.report;
        ++state.reports;
        const double loss = report.metrics.number("loss").value();
        if (report.index % 20 == 0) {
          std::printf("rank %d, step %llu: loss %.2e\n", report.rank, static_cast<unsigned long long>(report.index), loss);
        }
        if (loss < good_loss && !std::exchange(state.asked, true)) {
          self->send(state.trainer, troupe::StopRun{"the loss is small enough"});
        }
      },
      [](const troupe::Progressed&) {},
      [](const troupe::CheckpointCommitted&) {},
      [](const troupe::CheckpointFailed& news) { std::cerr << "checkpoint " << news.index << ": " << news.text << "\n"; },
      [](const troupe::CheckpointUploaded&) {},
      [](const troupe::RunWarning& news) { std::fprintf(stderr, "warning: %s\n", news.text.c_str()); },
      [self](const troupe::RunEnded& news) {
        self->send(self->state.boss, news.result, self->state.reports);
        self->quit();
      },
  };
}

// Both ranks' last reports are of the same step and the same weights.
bool ranks_agree(const troupe::Result& result) {
  std::array<const troupe::ReportRecord*, 2> last{};
  for (const auto& report : result.history) last.at(static_cast<std::size_t>(report.rank)) = &report;
  return last[0] && last[1] && last[0]->metrics == last[1]->metrics;
}

bool is_right(const troupe::Result& result, std::size_t reports_seen) {
  if (!result.ok()) return std::printf("failed: %s\n", result.error->message.c_str()), false;
  const double slope = result.metrics.number("slope").value();
  const double offset = result.metrics.number("offset").value();
  std::printf("y = %.4f x + %.4f after %zu reports\n", slope, offset, reports_seen);
  return result.stopped_early && ranks_agree(result) && reports_seen == result.history.size() &&
         std::abs(slope - 2) < 0.01 && std::abs(offset - 1) < 0.01;
}

}  // namespace

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::Result)

int main(int argc, char** argv) {
  const troupe::Session session{argc, argv, {{"fit_line", fit_line}}};

  caf::actor_system_config config;  // the program's own, with whatever else it needs
  troupe::register_types(config);
  caf::actor_system system{config};
  caf::scoped_actor self{system};

  auto watching = system.spawn(observer, caf::actor{self});
  troupe::TrainerOptions options;
  options.scaling.num_workers = 2;
  options.run.storage_path = argc > 1 ? argv[1] : "results";
  self->send(watching, troupe::spawn_trainer(system, session, "fit_line", {{"lr", 0.3}}, options, {watching}));
  watching = nullptr;

  bool right = false;
  self->receive([&](const troupe::Result& result, std::size_t reports) { right = is_right(result, reports); });
  std::puts(right ? "ok" : "wrong");
  return right ? 0 : 1;
}
