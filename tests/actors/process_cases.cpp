#include "process_cases.hpp"

#include <troupe/rank.hpp>
#include <troupe/torch_trainer.hpp>
#include <troupe/trainer.hpp>
#include <troupe/worker_group.hpp>

#include <unistd.h>

#include <caf/all.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

namespace troupe {

namespace {

using namespace std::chrono_literals;

void sum(TrainContext& context, const Config&) {
  float value = static_cast<float>(context.world_rank() + 1);
  context.communicator().all_reduce(Buffer{&value, sizeof value, DType::F32}, ReduceOp::Sum).wait().or_throw();
  context.barrier();
  context.report({{"sum", double{value}}, {"pid", std::int64_t{getpid()}}});
}

// Runs `end` on rank 1 while the others wait for it.
template <class End>
TrainFunction on_rank_1(End end) {
  return [end](TrainContext& context, const Config&) {
    context.barrier();
    if (context.world_rank() == 1) end();
    context.communicator().barrier().wait().or_throw();
  };
}

void tell_process_number() {
  if (const char* path = std::getenv("TROUPE_TEST_PIDS")) std::ofstream{path, std::ios::app} << getpid() << std::endl;
}

void step_until_stopped(TrainContext& context, const Config&) {
  std::int64_t steps = 0;
  tell_process_number();
  while (!context.should_stop()) {
    ++steps;
    std::this_thread::sleep_for(context.world_rank() == 0 ? 1ms : 2ms);
  }
  context.report({{"steps", steps}});
}

void report_odd_numbers(TrainContext& context, const Config&) {
  using Limits = std::numeric_limits<double>;
  context.report({{"nan", Limits::quiet_NaN()}, {"inf", Limits::infinity()}, {"minus_zero", -0.0}});
}

void look_around(TrainContext& context, const Config&) {
  const char* value = std::getenv("TROUPE_TEST_VALUE");
  const char* own = std::getenv("TROUPE_RANK_LINK");
  // A program that the rank starts sees the descriptors that it would inherit, and `ls`'s own.
  std::string leaked;
  std::FILE* listing = popen("readlink /proc/self/fd/* 2>/dev/null | grep -vE '^(/dev/null|pipe:.*|/proc/[0-9]+/fd)$'", "r");
  for (int byte; (byte = std::fgetc(listing)) != EOF;) leaked += static_cast<char>(byte);
  pclose(listing);
  context.report({{"value", value ? value : ""}, {"own_variable", own ? own : ""}, {"leaked", leaked}});
}

void sleep_and_tell(TrainContext&, const Config&) {
  tell_process_number();
  std::this_thread::sleep_for(60s);
}

}  // namespace

TrainFunctions process_cases() {
  return {
      {"sum", sum},
      {"throw_on_1", on_rank_1([] {
         std::puts("about to throw");
         throw std::runtime_error{"boom"};
       })},
      {"exit_3_on_1", on_rank_1([] { _exit(3); })},
      {"exit_0", [](TrainContext&, const Config&) { _exit(0); }},
      {"kill_on_1", on_rank_1([] { std::raise(SIGKILL); })},
      {"abort", [](TrainContext&, const Config&) {
         for (int i = 0; i < 100; ++i) std::printf("line %d\n", i);
         std::fputs("last words\n", stderr);
         std::abort();
       }},
      {"step_until_stopped", step_until_stopped},
      {"sleep", sleep_and_tell},
      {"report_odd_numbers", report_odd_numbers},
      {"report_often", [](TrainContext& context, const Config&) {
         for (int i = 0; i < 10'000; ++i) context.report({{"i", i}});
       }},
      {"report_too_much", [](TrainContext& context, const Config&) {
         context.report({{"text", std::string(9 << 20, 'x')}});
         context.barrier();
       }},
      {"look_around", look_around},
  };
}

int fit(const Session& session) {
  TrainerOptions options;
  options.scaling.num_workers = 2;
  options.scaling.placement = Placement::Processes;
  options.run.name = "run";
  options.run.storage_path = std::getenv("TROUPE_TEST_STORAGE");
  options.run.stop_grace = 2s;
  options.run.progress = false;
  const auto result = TorchTrainer{session, std::getenv("TROUPE_TEST_FUNCTION"), {}, options}.fit();
  const bool same_step = result.history.size() == 2 && result.history[0].metrics == result.history[1].metrics;
  return result.error ? result.exit_code() : same_step ? result.exit_code() : 99;
}

int drive(const Session& session) {
  caf::actor_system_config config;
  register_types(config);
  caf::actor_system system{config};
  caf::scoped_actor self{system};
  const auto group =
      spawn_worker_group(system, self, [&](const StartGroup& start) { return make_process_placer(session, start); });
  StartGroup order;
  order.attempt = 1;
  order.function = "sleep";
  order.config_json = "{}";
  order.run_directory = std::filesystem::temp_directory_path().string();
  order.scaling.num_workers = 2;
  self->send(group, order);
  self->receive([](const GroupEnded&) {}, caf::after(50s) >> [] {});
  return 0;
}

}  // namespace troupe
