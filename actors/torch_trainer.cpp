#include <troupe/torch_trainer.hpp>

#include "cluster_run.hpp"
#include "exceptions.hpp"
#include "progress_display.hpp"
#include "signal_stop.hpp"

#include <troupe/chaos.hpp>
#include <troupe/start_limits.hpp>
#include <troupe/trainer.hpp>

#include <caf/all.hpp>
#include <exception>
#include <new>
#include <system_error>

namespace troupe {

namespace {

struct SystemConfig : caf::actor_system_config {
  SystemConfig() {
    // One thread serves every actor of a run (disk work has threads of its own): a second one only adds wake-ups, which cost
    // 1.0 instead of 0.4 % of a 10 ms step. Sharing idles at no cost and wakes five times quicker than stealing.
    set("scheduler.policy", caf::atom("sharing"));
    set("scheduler.max-threads", std::size_t{1});
    register_types(*this);
  }
};

/// CAF's scheduler, clock and printer, the keeper, signals, processes and their output. CAF 0.17 crashes when it cannot start its own.
constexpr int threads_of_a_run = 8;

RunError run_error(Errc code, const std::string& message) {
  RunError error;
  error.code = code;
  error.message = message;
  return error;
}

// The thread in fit(): shows news, calls the user back, waits for the end.
class Listener {
 public:
  Listener(caf::actor_system& system, const TrainerOptions& options)
      : self_(system), options_(options), display_(options.run.progress) {}

  caf::actor handle() { return self_; }

  Result run_to_end(const caf::actor& trainer) {
    self_->monitor(trainer);
    std::optional<Result> result;
    self_->receive_while([&] { return !result; })(
        [&](const RunStarted& news) { display_.started(news); },
        [&](const Progressed& news) {
          if (news.rank == 0) display_.progressed(news.progress);
        },
        [&](const ReportArrived& news) { reported(news.report, trainer); },
        [&](const CheckpointCommitted& news) { display_.committed(news.checkpoint); },
        [&](const CheckpointFailed& news) {
          display_.warn("the checkpoint of report " + std::to_string(news.index) + " was not kept: " + news.text);
        },
        [&](const CheckpointUploaded&) {},
        [&](const RunWarning& news) { display_.warn(news.text); },
        [&](RunEnded& news) {
          warn_of_unused(news.unused_config_keys);
          display_.ended(news.result);
          result = std::move(news.result);
        },
        // Without its last message: memory ran out, or a bug.
        [&](const caf::down_msg& down) {
          result.emplace().error = run_error(code_of(down.reason), "the trainer ended: " + self_->system().render(down.reason));
          display_.ended(*result);
        });
    return std::move(*result);
  }
  /// What on_report threw.
  [[nodiscard]] std::exception_ptr thrown() const { return thrown_; }

 private:
  void reported(const ReportRecord& report, const caf::actor& trainer) {
    display_.reported(report);
    if (!options_.on_report || thrown_) return;
    try {
      options_.on_report(report);
    } catch (...) {
      thrown_ = std::current_exception();
      for (int stop = 0; stop < 2; ++stop) self_->send(trainer, StopRun{"on_report threw"});
    }
  }

  void warn_of_unused(const std::vector<std::string>& keys) {
    for (const auto& key : keys) display_.warn("no rank read the train_loop_config key '" + key + "'; is it misspelt?");
  }

  caf::scoped_actor self_;
  const TrainerOptions& options_;
  ProgressDisplay display_;
  std::exception_ptr thrown_;
};

}  // namespace

TorchTrainer::TorchTrainer(const Session& session, std::string train_function, Config train_loop_config,
                           TrainerOptions options)
    : session_(session),
      function_(std::move(train_function)),
      config_(std::move(train_loop_config)),
      options_(std::move(options)) {
  options_.run.chaos = chaos_in_force(options_.run.chaos);
  validate(options_.scaling);
  validate(options_.run);
  detail::check_cluster(options_);
  validate(parse_chaos(options_.run.chaos), options_.scaling);
  validate(options_.dataset_config, session_.datasets());
  if (session_.functions().contains(function_)) return;
  std::vector<std::string> names;
  std::string list;
  for (const auto& [name, function] : session_.functions()) {
    names.push_back(name);
    list += (list.empty() ? "" : ", ") + name;
  }
  const auto nearest = nearest_name(function_, names);
  throw Failure{Errc::NotFound, "there is no train function '" + function_ + "'; " +
                                    (nearest.empty() ? "the session has: " + list : "did you mean '" + nearest + "'?")};
}

Result TorchTrainer::run(std::exception_ptr& thrown_by_user) const {
  require_threads(threads_of_a_run, "the run's actors");
  SystemConfig config;
  caf::actor_system system{config};
  Listener listener{system, options_};
  auto trainer = spawn_trainer(system, session_, function_, config_, options_, {listener.handle()});
  try {
    const SignalStop signals{[trainer](int signal) {
      caf::anon_send(trainer, StopRun{signal == SIGINT ? "interrupted (Ctrl-C)" : "terminated (SIGTERM)", signal == SIGTERM});
    }};
    auto result = listener.run_to_end(trainer);
    thrown_by_user = listener.thrown();
    return result;
  } catch (...) {
    caf::anon_send_exit(trainer, caf::exit_reason::kill);  // nobody would hear of its end, for which the actor system waits
    throw;
  }
}

Result TorchTrainer::fit() {
  std::exception_ptr thrown_by_user;
  Result result;
  const auto fail = [&](Errc code, const std::string& message) {
    result.error = run_error(code, message);
    ProgressDisplay{options_.run.progress}.ended(result);
  };
  try {
    result = run(thrown_by_user);
  } catch (const Failure& failure) {
    fail(failure.code(), failure.what());
  } catch (const std::bad_alloc&) {
    fail(Errc::OutOfMemory, "the driver has no memory left; " + limits_on_starting());
  } catch (const std::system_error& error) {
    fail(Errc::StartFailed, std::string("cannot start the trainer's threads: ") + error.what() + "; " + limits_on_starting());
  }
  if (thrown_by_user) std::rethrow_exception(thrown_by_user);
  return result;
}

}  // namespace troupe
