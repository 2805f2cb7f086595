#include "commands.hpp"

#include <troupe/chaos.hpp>
#include <troupe/errors.hpp>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace troupe::tools {

namespace {

struct Options {
  std::string plan;
  std::vector<std::string> program;
  int ranks = 2;
  std::uint64_t attempts = 2;
  bool list = false;
};

int list() {
  for (int i = 0; i < num_chaos_kinds; ++i) {
    const auto kind = static_cast<ChaosKind>(i);
    std::printf("%-17s %s%s\n", std::string(name(kind)).c_str(), std::string(explain(kind)).c_str(), takes_the_process(kind) ? " (ranks as processes only)" : "");
  }
  return 0;
}

int preview(const ChaosPlan& plan, const Options& o) {
  ScalingConfig scaling;
  scaling.num_workers = o.ranks;
  scaling.placement = Placement::Processes;
  validate(plan, scaling);
  bool nothing = true;
  for (std::uint64_t attempt = 1; attempt <= o.attempts; ++attempt) {
    for (const auto& line : plan.preview(o.ranks, attempt)) {
      std::printf("attempt %llu, %s\n", static_cast<unsigned long long>(attempt), line.c_str());
      nothing = false;
    }
  }
  if (nothing) std::printf("nothing strikes in the first %llu attempts\n", static_cast<unsigned long long>(o.attempts));
  return 0;
}

int run_under(const Options& o) {
  if (setenv("TROUPE_CHAOS", o.plan.c_str(), 1) != 0) throw Failure{Errc::StartFailed, "cannot set TROUPE_CHAOS: " + std::string(std::strerror(errno))};
  std::vector<char*> words;
  for (const auto& word : o.program) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  throw Failure{errno == ENOENT ? Errc::FileNotFound : Errc::StartFailed, "cannot run " + o.program[0] + ": " + std::strerror(errno)};
}

int run(const Options& o) {
  if (o.list) return list();
  if (o.plan.empty()) throw WrongUse{"PLAN is required, as \"rank=1 step=5 kind=kill\"; --list shows the kinds"};
  const auto plan = parse_chaos(o.plan);
  return o.program.empty() ? preview(plan, o) : run_under(o);
}

}  // namespace

Command add_chaos(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("chaos", "Breaks a run on purpose: says what a plan does, or runs a program under it");
  command->add_option("PLAN", o.plan, "faults, as \"rank=1 step=5 kind=kill; rank=any step=5..9 kind=segv attempt=2; seed=7\"");
  command->add_option("PROGRAM", o.program, "after --: a program and its arguments; it gets the plan as TROUPE_CHAOS");
  command->add_option("--ranks", o.ranks, "without PROGRAM: of how many ranks is spoken")->capture_default_str()->check(CLI::Range(1, 16'384));
  command->add_option("--attempts", o.attempts, "without PROGRAM: of how many attempts is spoken")->capture_default_str()->check(CLI::Range(1, 1000));
  command->add_flag("--list", o.list, "shows the kinds of faults");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
