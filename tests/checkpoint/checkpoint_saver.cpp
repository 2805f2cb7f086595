// Saves checkpoints in a loop, with rank processes, until it is killed: checkpoint_saver STORAGE NUM_RANKS FIRST SCALE
// Prints "committed I" once checkpoint I is. Its ranks are this program again: checkpoint_saver rank RANK NUM_RANKS SCALE, which reads a
// line "INDEX DIRECTORY" and answers with a byte when its part is durable.
#include "checkpoint_cases.hpp"

#include <troupe/run_storage.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

namespace {

using namespace troupe;

struct Rank {
  int to = -1, from = -1;
};

int serve(int rank, int num_ranks, std::uint64_t scale) {
  std::uint64_t index = 0;
  std::string directory;
  while (std::cin >> index >> directory) {
    const test::State state{index, num_ranks, scale};
    if (index % 2) {
      write_part(directory, state.part(rank));
    } else {
      SnapshotPool pool;
      PartSnapshot{state.part(rank), pool}.write(directory);
    }
    if (::write(STDOUT_FILENO, ".", 1) != 1) return 1;
  }
  return 0;
}

Rank start(int rank, const char* num_ranks, const char* scale) {
  int down[2], up[2];
  if (::pipe(down) != 0 || ::pipe(up) != 0) std::exit(3);
  if (::fork() == 0) {
    const int alive = ::dup(STDOUT_FILENO);  // the test waits until nobody holds it
    ::dup2(down[0], STDIN_FILENO);
    ::dup2(up[1], STDOUT_FILENO);
    ::dup2(alive, STDERR_FILENO);
    for (int fd = 3; fd < 64; ++fd) ::close(fd);
    ::execl("/proc/self/exe", "checkpoint_saver", "rank", std::to_string(rank).c_str(), num_ranks, scale, nullptr);
    std::_Exit(3);
  }
  ::close(down[0]);
  ::close(up[1]);
  return {down[1], up[0]};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  if (argv[1] == std::string("rank")) return serve(std::atoi(argv[2]), std::atoi(argv[3]), std::strtoull(argv[4], nullptr, 10));
  std::vector<Rank> ranks;
  for (int rank = 0; rank < std::atoi(argv[2]); ++rank) ranks.push_back(start(rank, argv[2], argv[4]));
  RunConfig run;
  run.storage_path = argv[1];
  run.name = "run";
  RunStorage storage{run};
  for (auto index = std::strtoull(argv[3], nullptr, 10);; ++index) {
    const auto directory = (storage.path() / ".staging" / ("save_" + std::to_string(index))).string();
    const auto order = std::to_string(index) + " " + directory + "\n";
    CompleteCheckpoint complete{index, Metrics{{"index", static_cast<std::int64_t>(index)}}, {}};
    for (const auto& rank : ranks) {
      if (::write(rank.to, order.data(), order.size()) < 0) return 1;
      complete.directories[static_cast<int>(complete.directories.size())] = directory;
    }
    char answer = 0;
    for (const auto& rank : ranks) {
      if (::read(rank.from, &answer, 1) != 1) return 1;  // the rank is dead: nothing is committed
    }
    (void)storage.commit(complete);
    std::cout << "committed " << index << std::endl;
    if (index >= 2 && std::filesystem::exists(storage.path() / checkpoint_name(index - 2))) storage.remove(index - 2);
  }
}
