#pragma once

#include "fault_cases.hpp"
#include "scenario.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <troupe/torch_trainer.hpp>

#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace troupe {

extern Session* session;

/// Whole runs of 2 ranks that step, as processes unless a test says else, each in a directory of its own.
class FaultRun : public testing::Test {
 protected:
  TempDir directory_;
  std::string function_ = "steps";
  Config config_{{"steps", 6}};
  TrainerOptions options_ = standard();

  static TrainerOptions standard() {
    TrainerOptions options;
    options.scaling.num_workers = 2;
    options.scaling.placement = Placement::Processes;
    options.run.progress = false;
    options.run.start_timeout = std::chrono::seconds{20};
    options.run.collective_timeout = std::chrono::seconds{20};
    options.run.stop_grace = std::chrono::seconds{2};
    return options;
  }

  Result run(const std::string& chaos) {
    options_.run.chaos = chaos;
    options_.run.name = "run_" + std::to_string(++runs_);
    options_.run.storage_path = directory_.path();
    return TorchTrainer{*session, function_, config_, options_}.fit();
  }

  /// Whether `count` process numbers were written to a file and none of them runs any more, within two seconds.
  static bool are_gone(const std::filesystem::path& pids, std::size_t count) {
    std::vector<std::string> all;
    std::ifstream file{pids};
    for (std::string pid; file >> pid;) all.push_back(pid);
    if (all.size() != count) return false;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{2};
    for (;;) {
      const auto runs = [](const std::string& pid) {
        std::ifstream stat{"/proc/" + pid + "/stat"};
        std::string number, program, state;
        return stat >> number >> program >> state && state != "Z" && state != "X";
      };
      if (std::none_of(all.begin(), all.end(), runs)) return true;
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds{10});
    }
  }

 private:
  int runs_ = 0;
};

}  // namespace troupe
