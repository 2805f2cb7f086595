// What it costs to be watched: what each call adds to a step, and a driver's processor time for looking at two ranks.
//
//   beat_bench [--json FILE]     about 15 s; a table on stdout
#include <troupe/black_box.hpp>
#include <troupe/flight_recorder.hpp>
#include <troupe/torch_trainer.hpp>

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double cpu_s() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// The best of five loops, in ns a call.
template <class Call>
double cost_ns(Call&& call) {
  constexpr int calls = 1'000'000;
  double best = 1e9;
  for (int loop = 0; loop < 5; ++loop) {
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) call(i);
    best = std::min(best, seconds_since(begin) * 1e9 / calls);
  }
  return best;
}

/// Steps of a millisecond of nothing: what `step_completed` and `should_stop` take of each, on the rank's own clock.
void steps(TrainContext& context, const Config& config) {
  const auto end = Clock::now() + std::chrono::milliseconds{config.get<std::int64_t>("time_ms")};
  std::int64_t count = 0;
  double calls_s = 0;
  while (Clock::now() < end) {
    for (const auto due = Clock::now() + 1ms; Clock::now() < due;) {
    }
    const auto begin = Clock::now();
    context.step_completed();
    (void)context.should_stop();
    calls_s += seconds_since(begin);
    ++count;
  }
  context.report({{"share", calls_s / (static_cast<double>(count) * 1e-3)}});
}

struct Run {
  double share = 0;         ///< of a 1 ms step that the calls take
  double driver_cpu = 0;    ///< of one core, the driver's, start and end included
};

Run run(const Session& session, const std::filesystem::path& storage, std::chrono::milliseconds step_timeout, const std::string& name) {
  TrainerOptions options;
  options.scaling.num_workers = 2;
  options.scaling.placement = Placement::Processes;
  options.run.name = name;
  options.run.storage_path = storage;
  options.run.progress = false;
  options.run.step_timeout = step_timeout;
  const auto begin = Clock::now();
  const auto before = cpu_s();
  const auto result = TorchTrainer{session, "steps", {{"time_ms", 4000}}, options}.fit();
  if (result.error) throw Failure{result.error->code, result.error->message};
  Run got;
  for (const auto& report : result.history) got.share = std::max(got.share, *report.metrics.number("share"));
  got.driver_cpu = (cpu_s() - before) / seconds_since(begin);
  return got;
}

}  // namespace

int main(int argc, char** argv) {
  const Session session{argc, argv, {{"steps", steps}}};
  auto pattern = (std::filesystem::temp_directory_path() / "troupe-beat-bench-XXXXXX").string();
  if (!::mkdtemp(pattern.data())) return 1;
  const auto box = std::make_unique<BlackBox>();
  FlightRecorder recorder{"bench", 0, {0, 1}};
  const Collective sum{Call::AllReduce, ReduceOp::Sum, DType::F32, DType::F32, 0, 4096};
  const auto now = Clock::now();
  nlohmann::ordered_json figures;
  figures["post_ns"] = cost_ns([&](int) { recorder.finish(recorder.post(sum, now), Errc::Ok, now); });
  figures["advance_ns"] = cost_ns([&](int) { box->advance(); });
  figures["step_ns"] = cost_ns([&](int i) {
    box->advance();
    box->note(EventKind::Step, static_cast<std::uint64_t>(i), {}, {}, Clock::now());
  });
  {
    const BlackBoxScope scope{box.get()};
    figures["post_watched_ns"] = cost_ns([&](int) { recorder.finish(recorder.post(sum, now), Errc::Ok, now); });
    figures["wait_ns"] = cost_ns([&](int) { const WaitMark mark{WaitingIn::Collective}; });
  }
  const auto rare = run(session, pattern, 600s, "rare"), often = run(session, pattern, 160ms, "often");
  figures["calls_share_of_1ms_step"] = std::max(rare.share, often.share);
  figures["driver_cpu_1_look_a_s"] = rare.driver_cpu;
  figures["driver_cpu_50_looks_a_s"] = often.driver_cpu;
  std::filesystem::remove_all(pattern);
  std::cout << figures.dump(1) << "\n";
  if (argc > 2 && std::string(argv[1]) == "--json") std::ofstream{argv[2]} << figures.dump(1) << "\n";
  return 0;
}
