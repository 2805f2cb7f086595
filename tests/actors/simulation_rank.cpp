#include "simulation_rank.hpp"

#include <algorithm>
#include <limits>

namespace troupe::sim {

using namespace std::chrono_literals;
using Kind = Fate::Kind;

void Stage::poll() {
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto rank = ranks[i];
    rank->poll();
  }
  std::erase_if(ranks, [](const auto& rank) { return rank->is_over(); });
}

namespace {

const Config no_config;  // what no data set is made from

}  // namespace

SimulatedRank::SimulatedRank(Stage& stage, RunRank order, std::shared_ptr<RankChannel> channel, std::shared_ptr<Gathering> gathering, Fate fate)
    : stage_(stage),
      order_(order),
      channel_(channel),
      gathering_(std::move(gathering)),
      fate_(fate),
      context_(std::move(order), std::move(channel), nullptr, std::make_shared<KeptObjects>(), RankDatasets{{}, no_config, {}}) {}

void SimulatedRank::begin() {
  if (auto* box = channel_->box()) box->begin(order_.attempt, order_.rank);
  fiber_.emplace(train());
  ready_ = [] { return true; };
}

void SimulatedRank::poll() {
  if (over_ || !ready_) return;
  try {
    if (!ready_()) return;
  } catch (...) {
    thrown_ = std::current_exception();
  }
  ready_ = nullptr;
  const auto me = shared_from_this();
  fiber_->handle.resume();
  if (fiber_->handle.done()) end(fiber_->handle.promise().thrown);
}

void SimulatedRank::kill() {
  over_ = true;
  ready_ = nullptr;
}

// What run_train_function does when the train function is over.
void SimulatedRank::end(std::exception_ptr thrown) {
  over_ = true;
  WorkerEnded ended;
  try {
    if (thrown) std::rethrow_exception(thrown);
    context_.finish_saves();
    ended.unused_config_keys = {"key"};
  } catch (const Failure& failure) {
    ended.error.emplace();
    ended.error->code = failure.code();
    ended.error->message = failure.what();
  } catch (const std::exception& error) {
    ended.error.emplace();
    ended.error->code = Errc::TrainFunctionFailed;
    ended.error->message = error.what();
  }
  const auto who = "rank " + std::to_string(order_.rank);
  if (!ended.error) gathering_->abort(who + " has left");
  if (ended.error) ended.error->rank = order_.rank;
  if (ended.error && ended.error->code != Errc::Aborted) gathering_->abort(who + " failed: " + ended.error->message);
  channel_->tell_control(std::move(ended));
}

// As a WaitMark, but without the time of day, which would make a seed's warnings differ from run to run.
void SimulatedRank::mark(WaitingIn others) {
  auto* const box = channel_->box();
  if (!box) return;
  box->waiting_since_ns.store(std::numeric_limits<std::int64_t>::max());
  box->waiting_in.store(static_cast<std::uint32_t>(others));
}

SimulatedRank::Until SimulatedRank::pause(Duration time) {
  const auto due = std::make_shared<bool>(false);
  stage_.world.after(fate_.kind == Kind::IsSlow ? 20 * time : time, [due] { *due = true; });
  return until([due] { return *due; });
}

SimulatedRank::Until SimulatedRank::gather(int step) {
  gathering_->come(order_.rank, step);
  const auto deadline = stage_.world.now() + order_.barrier_timeout;
  stage_.world.after(order_.barrier_timeout + 1ms, [] {});  // somebody looks then
  return until([this, step, deadline] {
    if (gathering_->complete(step)) return true;
    if (gathering_->broken()) throw Failure{Errc::Aborted, *gathering_->broken()};
    if (stage_.world.now() <= deadline) return false;
    throw Failure{Errc::DeadlinePassed, "rank " + std::to_string(order_.rank) + " waited too long at step " + std::to_string(step)};
  }, WaitingIn::Collective);
}

SimulatedRank::Until SimulatedRank::barrier() {
  const auto sequence = next_barrier_++;
  channel_->send(BarrierReached{order_.attempt, order_.rank, sequence, std::to_string(order_.rank)});
  return until([this, sequence] {
    const auto bytes = channel_->take_passed(sequence);
    if (bytes && *bytes != "0") throw std::logic_error{"a barrier passed on the bytes of rank " + *bytes};
    return bytes.has_value();
  }, WaitingIn::Barrier);
}

bool SimulatedRank::all_do(int step, std::uint64_t what, int percent) const {
  Random drawn{stage_.training.seed + 1'000'003 * static_cast<std::uint64_t>(step) + 17 * what + 29 * order_.attempt};
  return drawn.chance(percent);
}

std::optional<int> Stage::steps_in(const std::string& copy) const {
  if (copy.starts_with(Memory::place)) return disk.memory.steps_of(copy);
  std::optional<int> steps;
  for (const auto& [who, attempt] : disk.read(copy)) steps = std::max(steps.value_or(0), std::stoi(who.substr(who.rfind('=') + 1)) + 1);
  return steps;
}

int SimulatedRank::first_step() const {
  if (!order_.resume_checkpoint) return 0;
  const auto steps = stage_.steps_in(*order_.resume_checkpoint);
  if (!steps) stage_.complain("rank " + std::to_string(order_.rank) + " finds nothing in " + *order_.resume_checkpoint + ", from where it is to go on");
  return steps.value_or(0);
}

void SimulatedRank::take_snapshot(int step) {
  const int every = order_.snapshots.every;
  if (every == 0 || step == 0 || step % every != 0) return;
  stage_.disk.memory.take(order_.attempt, order_.rank, order_.world_size, step, context_.reports());
}

void SimulatedRank::misbehave(int step) {
  if (steps_done_ != fate_.at) return;
  const auto where = " at step " + std::to_string(step);
  switch (fate_.kind) {
    case Kind::Throws: throw std::runtime_error{"boom" + where};
    case Kind::Hangs: hangs_ = true; return;
    default: return;
  }
}

SimulatedRank::Fiber SimulatedRank::train() {
  auto& random = stage_.world.random;
  if (fate_.kind == Kind::NeverStarts) co_await until([] { return false; });
  co_await pause(fate_.kind == Kind::StartsLate ? random.time(1s, 20s) : random.time(0ms, 5ms));
  channel_->send(RankStarted{order_.attempt, order_.rank, 1});
  int step = first_step();
  for (; step < stage_.training.num_steps; ++step, ++steps_done_) {
    if (steps_done_ > 0) take_snapshot(step);
    co_await until([this] { return !channel_->stop_call_waits(); }, WaitingIn::StopStep);
    if (context_.should_stop()) break;
    co_await pause(random.time(0ms, stage_.training.longest_step));
    misbehave(step);
    if (hangs_) co_await until([] { return false; });
    if (fate_.kind == Kind::ReturnsEarly && steps_done_ == fate_.at) {
      stage_.fate_ended_early = true;
      break;
    }
    co_await gather(step);
    context_.step_completed();
    if (all_do(step, 1, stage_.training.barrier_percent)) co_await barrier();
    channel_->try_send(Progressed{order_.attempt, order_.rank, {}});
    if ((step + 1) % stage_.training.checkpoint_every == 0) {
      report_checkpoint(step);
    } else {
      const bool alike = stage_.training.saves != Saves::RankZero;  // writers of one checkpoint report equally often
      if (alike ? all_do(step, 2, stage_.training.report_percent) : random.chance(stage_.training.report_percent)) report(step);
    }
  }
  if (step >= stage_.training.num_steps) stage_.completed.insert({order_.attempt, order_.rank});
  co_await until([this] { return std::ranges::all_of(saves_, [](const auto& save) { return save->done(); }); }, WaitingIn::Save);
}

Metrics SimulatedRank::metrics(int step) {
  auto& random = stage_.world.random;
  const double loss = random.chance(10) ? std::numeric_limits<double>::quiet_NaN() : random.between(0, 100) / 100.0;
  return {{"attempt", static_cast<std::int64_t>(order_.attempt)}, {"rank", order_.rank}, {"step", step}, {"loss", loss}};
}

void SimulatedRank::report(int step) {
  context_.report(metrics(step), std::nullopt);
  ++stage_.reports[{order_.attempt, order_.rank}];
}

void SimulatedRank::report_checkpoint(int step) {
  const auto saves = stage_.training.saves;
  if (saves == Saves::RankZero && order_.rank != 0) return;
  const auto who = saves == Saves::Shared ? std::string("shared") : "rank_" + std::to_string(order_.rank);
  const auto directory = std::filesystem::path(order_.run_directory) / ".staging" /
                         ("attempt_" + std::to_string(order_.attempt) + "_" + who + "_" + std::to_string(next_directory_++));
  stage_.disk.files.make_directories(directory);
  const int num_writers = saves == Saves::RankZero ? 1 : order_.world_size;
  const auto save = stage_.training.pending ? std::make_shared<PendingSave>() : nullptr;
  if (!save) write_part(directory, step);
  context_.report(metrics(step), Checkpoint{directory, num_writers, save});
  ++stage_.reports[{order_.attempt, order_.rank}];
  if (save) save_later(directory, step, save);
}

void SimulatedRank::write_part(const std::filesystem::path& directory, int step) {
  const auto text = "attempt=" + std::to_string(order_.attempt) + " rank=" + std::to_string(order_.rank) + " step=" + std::to_string(step);
  with_fault(stage_.world, stage_.disk, stage_.world.random.chance(stage_.write_error_percent), [&] {
    stage_.disk.files.write_file(directory / ("part_" + std::to_string(order_.rank) + ".txt"), text);
  });
}

// The writer's thread: it ends with its process only.
void SimulatedRank::save_later(const std::filesystem::path& directory, int step, std::shared_ptr<PendingSave> save) {
  saves_.push_back(save);
  stage_.world.after(stage_.world.random.time(0ms, 300ms), [me = shared_from_this(), directory, step, save] {
    if (me->over_ && !me->fiber_->handle.done()) return;  // killed
    try {
      me->write_part(directory, step);
      save->finish({});
    } catch (const Failure& failure) {
      save->finish({failure.code(), failure.what()});
    }
  });
}

StartWorker simulated_worker(Stage& stage, std::shared_ptr<Gathering> gathering, Fate fate,
                             std::function<void(std::shared_ptr<SimulatedRank>)> began) {
  struct Handle final : RankWorker {
    void join() override {}
  };
  return [&stage, gathering = std::move(gathering), fate, began = std::move(began)](const RunRank& order, std::shared_ptr<RankChannel> channel,
                                                                                   std::shared_ptr<Communicator>) {
    const auto rank = std::make_shared<SimulatedRank>(stage, order, std::move(channel), gathering, fate);
    rank->begin();
    stage.ranks.push_back(rank);
    if (began) began(rank);
    return std::make_unique<Handle>();
  };
}

}  // namespace troupe::sim
