// What the control plane costs: starting two ranks, reporting, a step's share, and a gather from
// many ranks.
//
//   control_bench [--json FILE]     all figures (about 40 s), a table on stderr and FILE
//   control_bench --case startup_threads|startup_processes|report|control
//                                   one measurement; the last line is one JSON object
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>
#include <troupe/torch_trainer.hpp>

#include "control_figures.hpp"
#include "control_gather.hpp"

namespace {

using namespace troupe;
using namespace troupe::bench;
using Json = nlohmann::ordered_json;

constexpr int num_ranks = 2;

/// The run directories of one measurement.
class Storage {
 public:
  Storage() {
    auto pattern =
        (std::filesystem::temp_directory_path() / "troupe-control-bench-XXXXXX").string();
    if (!::mkdtemp(pattern.data()))
      throw Failure{Errc::StorageUnavailable, pattern + " cannot be made"};
    path_ = pattern;
  }
  ~Storage() { std::filesystem::remove_all(path_); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// ---- train functions
// -------------------------------------------------------------------------------------------

void report_first_line(TrainContext& context, const Config&) { context.report({{"at", now_s()}}); }

/// `spaced` reports a millisecond apart, then `tight` ones in a loop. The last says what a call of
/// the loop cost.
void report_often(TrainContext& context, const Config& config) {
  const int spaced = config.get<int>("spaced"), tight = config.get<int>("tight");
  for (int i = 0; i < spaced; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    context.report({{"phase", "spaced"}, {"loss", 0.5}, {"sent", now_s()}});
  }
  context.barrier();
  const double begin = now_s();
  for (int i = 0; i < tight; ++i) {
    context.report({{"phase", "tight"}, {"loss", 0.5}, {"sent", 0.0}});
  }
  const double end = now_s();
  context.report({{"phase", "end"}, {"begin", begin}, {"call_s", (end - begin) / tight}});
}

volatile double seed_of_work =
    1;  // read and written by every step, so that none is hoisted out of its loop

/// Work of a fixed number of operations, without memory traffic.
void spin(std::int64_t operations) {
  double x = seed_of_work;
  for (std::int64_t i = 0; i < operations; ++i) x = x * 0.999999 + 1e-6;
  seed_of_work = x;
}

std::int64_t operations_of(double seconds) {
  constexpr std::int64_t operations = 1'000'000;
  double best = 1;
  for (int i = 0; i < 5; ++i) {
    const double begin = now_s();
    spin(operations);
    best = std::min(best, now_s() - begin);
  }
  if (best < 1e-5)
    throw Failure{Errc::Internal, "a million operations took no time: the compiler left them out"};
  return static_cast<std::int64_t>(static_cast<double>(operations) * seconds / best);
}

/// Processor time of all threads of this process.
double process_cpu_s() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Median of the pairs' ratios.
double paired(const std::vector<double>& bare, const std::vector<double>& full) {
  std::vector<double> ratios;
  for (std::size_t b = 0; b < bare.size(); ++b) ratios.push_back(bare[b] / full[b]);
  return median(ratios);
}

/// Blocks of 10 ms steps, with the control plane's calls in each step and without, in turn; all
/// ranks do the same.
void step_with_and_without(TrainContext& context, const Config& config) {
  const int blocks = config.get<int>("blocks"), steps = config.get<int>("steps");
  const auto operations = operations_of(0.010);
  std::vector<double> bare, full, bare_cpu, full_cpu;
  for (int b = 0; b < 2 * blocks; ++b) {
    const bool with = b % 2 == (b / 2) % 2;  // bare and full take turns in going first
    context.barrier();
    const double begin = now_s(), begin_cpu = process_cpu_s();
    for (int s = 0; s < steps; ++s) {
      spin(operations);
      if (!with) continue;
      if (context.should_stop()) return;
      context.progress({.epoch = 1,
                        .num_epochs = 1,
                        .step = s,
                        .num_steps = steps,
                        .loss = 0.5,
                        .samples_per_s = 100});
      context.report({{"step", s}, {"loss", 0.5}});
    }
    (with ? full : bare).push_back((now_s() - begin) / steps);
    context.barrier();  // so that the processor time is that of all ranks' blocks
    (with ? full_cpu : bare_cpu).push_back((process_cpu_s() - begin_cpu) / steps / num_ranks);
  }
  context.report({{"bare_s", median(bare)},
                  {"full_s", median(full)},
                  {"ratio", paired(bare, full)},
                  {"bare_cpu_s", median(bare_cpu)},
                  {"full_cpu_s", median(full_cpu)},
                  {"cpu_ratio", paired(bare_cpu, full_cpu)}});
}

// ---- measurements
// ----------------------------------------------------------------------------------------------

TrainerOptions options_for(const Storage& storage, const std::string& name, Placement placement) {
  TrainerOptions options;
  options.scaling.num_workers = num_ranks;
  options.scaling.placement = placement;
  options.run.name = name;
  options.run.storage_path = storage.path();
  options.run.progress = false;
  return options;
}

Result fit(const Session& session, const std::string& function, Config config,
           TrainerOptions options) {
  auto result = TorchTrainer{session, function, std::move(config), std::move(options)}.fit();
  if (!result.ok()) throw Failure{result.error->code, function + ": " + result.error->message};
  return result;
}

/// Seconds from fit() to the first line of the train function, on the later rank.
double startup_s(const Session& session, Placement placement) {
  const Storage storage;
  const double begin = now_s();
  const auto result =
      fit(session, "report_first_line", {}, options_for(storage, "startup", placement));
  double last = 0;
  for (const auto& report : result.history)
    last = std::max(last, report.metrics.number("at").value_or(0));
  if (result.history.size() != num_ranks)
    throw Failure{Errc::Internal, "startup: not every rank has reported"};
  return last - begin;
}

struct ReportCosts {
  double call_s = 0;         ///< mean of a tight loop, for the caller; the dearer rank
  double visible_s = 0;      ///< median until on_report has it, reports a millisecond apart
  double reports_per_s = 0;  ///< from the first call of the tight loop to the last on_report
};

ReportCosts report_costs(const Session& session) {
  const Storage storage;
  auto options = options_for(storage, "report", Placement::Threads);
  ReportCosts costs;
  std::vector<double> visible;
  double begin = 0, last = 0;
  int num_tight = 0;
  options.on_report = [&](const ReportRecord& report) {
    const double now = now_s();
    const auto& phase = std::get<std::string>(*report.metrics.find("phase"));
    if (phase == "spaced") visible.push_back(now - report.metrics.number("sent").value());
    if (phase == "tight") last = now, ++num_tight;
    if (phase != "end") return;
    costs.call_s = std::max(costs.call_s, report.metrics.number("call_s").value());
    const double began = report.metrics.number("begin").value();
    begin = begin == 0 ? began : std::min(begin, began);
  };
  fit(session, "report_often", {{"spaced", 300}, {"tight", 10'000}}, options);
  costs.visible_s = median(visible);
  costs.reports_per_s = num_tight / (last - begin);
  return costs;
}

template <class Measure>
std::vector<double> repeat(int runs, Measure&& measure) {
  std::vector<double> values;
  for (int run = 0; run < runs; ++run) values.push_back(measure());
  return values;
}

void add_startup(Json& figures, const Session& session) {
  const auto threads = repeat(9, [&] { return startup_s(session, Placement::Threads); });
  figures.push_back(
      figure("startup_threads", median(threads), {"s", 0.050, "limit"}, threads.size()));
  const auto processes = repeat(5, [&] { return startup_s(session, Placement::Processes); });
  figures.push_back(
      figure("startup_processes", median(processes), {"s", 1.0, "limit"}, processes.size()));
}

void add_report(Json& figures, const Session& session) {
  std::vector<double> call_us, visible_ms, rate;
  for (int run = 0; run < 3; ++run) {
    const auto costs = report_costs(session);
    call_us.push_back(1e6 * costs.call_s);
    visible_ms.push_back(1e3 * costs.visible_s);
    rate.push_back(costs.reports_per_s);
  }
  figures.push_back(figure("report_call", median(call_us), {"us", 50, "limit"}, call_us.size()));
  figures.push_back(
      figure("report_visible", median(visible_ms), {"ms", 5, "limit"}, visible_ms.size()));
  figures.push_back(
      figure("report_rate", median(rate), {"reports/s", 10'000, "limit", true}, rate.size()));
}

void add_control(Json& figures, const Session& session) {
  const Storage storage;
  const int blocks = 40;
  auto options = options_for(storage, "step", Placement::Threads);
  options.scaling.pin_threads = true;
  const auto result =
      fit(session, "step_with_and_without", {{"blocks", blocks}, {"steps", 10}}, options);
  const auto get = [&](const std::string& name) {
    return 1e3 * result.metrics.number(name).value();
  };
  for (const auto& [name, suffix] : {std::pair{"control_step", ""}, {"control_step_cpu", "cpu_"}}) {
    const auto key = [suffix = suffix](const char* what) {
      return what + std::string("_") + suffix + "s";
    };
    const Goal goal{"ms", get(key("bare")), "the same steps without it", false, 0.99};
    figures.push_back(
        figure(name, get(key("full")), goal, blocks, get(std::string(suffix) + "ratio") / 1e3));
  }
  const auto gather = gather_reports(512, 50);
  figures.push_back(
      figure("control_gather_512", 1e3 * median(gather), {"ms", 2, "limit"}, gather.size()));
}

int run_case(const Session& session, const std::string& name) {
  Json line;
  if (name == "startup_threads" || name == "startup_processes") {
    const auto placement = name == "startup_threads" ? Placement::Threads : Placement::Processes;
    line = {{"case", name}, {"first_line_s", startup_s(session, placement)}};
  } else if (name == "report") {
    const auto costs = report_costs(session);
    line = {{"case", name},
            {"call_us", 1e6 * costs.call_s},
            {"visible_ms", 1e3 * costs.visible_s},
            {"reports_per_s", costs.reports_per_s}};
  } else if (name == "control") {
    line = Json::array();
    add_control(line, session);
  } else {
    throw Failure{Errc::InvalidArgument,
                  "--case " + name + ": not startup_threads, startup_processes, report or control"};
  }
  std::cout << line.dump() << std::endl;
  return 0;
}

int run_all(const Session& session, const std::string& json_file) {
  auto figures = Json::array();
  std::fprintf(stderr, "%-28s %10s %10s %s\n", "figure", "ours", "peer", "unit");
  add_startup(figures, session);
  add_report(figures, session);
  add_control(figures, session);
  if (!json_file.empty() && !(std::ofstream{json_file} << figures.dump(1) << "\n").flush()) {
    throw Failure{Errc::StorageUnavailable, json_file + " cannot be written"};
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Session session{argc,
                        argv,
                        {{"report_first_line", report_first_line},
                         {"report_often", report_often},
                         {"step_with_and_without", step_with_and_without}}};
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.empty()) return run_all(session, "");
    if (words.size() == 2 && words[0] == "--json") return run_all(session, words[1]);
    if (words.size() == 2 && words[0] == "--case") return run_case(session, words[1]);
    std::cerr << "usage: control_bench [--json FILE | --case "
                 "startup_threads|startup_processes|report|control]\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "control_bench: " << error.what() << "\n";
    return 1;
  }
}
