#include "fault_run.hpp"

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include <cstdlib>

namespace troupe {
Session* session = nullptr;
}

/// So much address space beside what is in use; processes that are started have as much in all.
static void leave_room(std::uint64_t bytes) {
  std::uint64_t pages = 0;
  std::ifstream{"/proc/self/statm"} >> pages;
  const rlimit limit{pages * 4096 + bytes, pages * 4096 + bytes};
  setrlimit(RLIMIT_AS, &limit);
}

// The program is its own process rank; with --fit it is a driver that can be killed.
int main(int argc, char** argv) {
  troupe::Session session{argc, argv, troupe::fault_cases()};
  troupe::session = &session;
  if (argc > 1 && std::string(argv[1]) == "--fit") {
    if (const char* room = std::getenv("TROUPE_TEST_ADDRESS_SPACE_MB")) leave_room(std::strtoull(room, nullptr, 10) << 20);
    troupe::TrainerOptions options;
    options.scaling.num_workers = 2;
    options.scaling.placement = troupe::Placement::Processes;
    options.run.name = "run";
    options.run.storage_path = std::getenv("TROUPE_TEST_STORAGE");
    options.run.progress = false;
    if (std::getenv("TROUPE_TEST_THREADS")) options.scaling.placement = troupe::Placement::Threads;
    if (const char* ranks = std::getenv("TROUPE_TEST_RANKS")) options.scaling.num_workers = std::atoi(ranks);
    if (const char* failures = std::getenv("TROUPE_TEST_MAX_FAILURES")) options.run.failure.max_failures = std::atoi(failures);
    const char* function = std::getenv("TROUPE_TEST_FUNCTION");
    const auto config = nlohmann::ordered_json::parse(std::getenv("TROUPE_TEST_CONFIG"));
    return troupe::TorchTrainer{session, function ? function : "steps", troupe::Config(config), options}.fit().exit_code();
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
