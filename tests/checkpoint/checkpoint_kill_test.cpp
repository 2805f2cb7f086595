#include "checkpoint_cases.hpp"

#include <troupe/run_storage.hpp>

#include <gmock/gmock.h>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

// Real processes killed at random moments of real saves: what is found afterwards is a whole checkpoint, and never an older one than
// was said to be committed. 20 kills; TROUPE_KILLS=200 for the full number.

namespace troupe {
namespace {

namespace fs = std::filesystem;
using test::State;

constexpr int kRanks = 3;
constexpr std::uint64_t kScale = 8;  // about 3 MB a save

struct Saver {
  pid_t pid = -1;
  int out = -1;

  Saver(const fs::path& storage, std::uint64_t first) {
    int up[2];
    if (::pipe(up) != 0) throw std::runtime_error{"pipe"};
    const auto index = std::to_string(first), scale = std::to_string(kScale), ranks = std::to_string(kRanks);
    pid = ::fork();
    if (pid == 0) {
      ::setpgid(0, 0);
      ::dup2(up[1], STDOUT_FILENO);
      ::close(up[0]);
      ::close(up[1]);
      ::execl(TROUPE_SAVER, "checkpoint_saver", storage.c_str(), ranks.c_str(), index.c_str(), scale.c_str(), nullptr);
      std::_Exit(3);
    }
    ::setpgid(pid, pid);
    ::close(up[1]);
    out = up[0];
  }

  /// Waits for `lines` more lines, then `more`, then kills driver and ranks. Returns the last index that was said to be committed.
  std::uint64_t kill_after(int lines, std::chrono::microseconds more, std::uint64_t committed) {
    std::string text;
    char c = 0;
    for (int seen = 0; seen < lines && ::read(out, &c, 1) == 1;) {
      text += c;
      seen += c == '\n';
    }
    std::this_thread::sleep_for(more);
    ::kill(-pid, SIGKILL);
    while (::read(out, &c, 1) == 1) text += c;  // until the last process that holds the pipe is gone
    ::waitpid(pid, nullptr, 0);
    ::close(out);
    const auto end = text.rfind('\n');
    const auto begin = end == std::string::npos || end == 0 ? 0 : text.rfind("committed ", end);
    return end == std::string::npos ? committed : std::stoull(text.substr(begin + 10, end - begin - 10));
  }
};

TEST(CheckpointKill, LeavesAWholeCheckpointAtEveryKill) {
  const char* wanted = std::getenv("TROUPE_KILLS");
  const int num_kills = wanted ? std::atoi(wanted) : 20;
  auto pattern = (fs::temp_directory_path() / "troupe-kill-XXXXXX").string();
  const fs::path root = ::mkdtemp(pattern.data());
  std::mt19937 random{7};
  std::uint64_t committed = 0;
  int unloadable = 0, mixed = 0, lost = 0, none = 0, left_over = 0;
  for (int kill = 0; kill < num_kills; ++kill) {
    Saver saver{root, committed + 1};
    const auto said = saver.kill_after(kill % 3, std::chrono::microseconds{random() % 60'000}, committed);
    std::error_code error;
    left_over += fs::exists(root / "run" / ".staging", error) && !fs::is_empty(root / "run" / ".staging", error);
    if (!fs::exists(root / "run")) continue;
    const auto contents = read_run(root / "run");
    unloadable += static_cast<int>(contents.warnings.size());
    for (const auto& warning : contents.warnings) ADD_FAILURE() << warning;
    if (contents.checkpoints.empty()) {
      none += 1;
      lost += said > 0;
      continue;
    }
    const auto newest = contents.checkpoints.back().index;
    lost += newest < said;
    for (const auto& record : contents.checkpoints) {
      try {
        const CheckpointReader reader{record.checkpoint.path()};
        mixed += State::seed_of(reader) != record.index || !State{record.index, kRanks, kScale}.difference(reader).empty();
      } catch (const Failure& failure) {
        ++unloadable;
        ADD_FAILURE() << failure.what();
      }
    }
    committed = newest;
  }
  std::cout << num_kills << " kills, " << left_over << " of them inside a save; " << committed << " checkpoints committed; unloadable "
            << unloadable << ", mixed " << mixed << ", lost " << lost << ", found none " << none << "\n";
  EXPECT_EQ(unloadable, 0);
  EXPECT_EQ(mixed, 0);
  EXPECT_EQ(lost, 0);
  EXPECT_GT(left_over, num_kills / 4) << "hardly a kill fell into a save";
  fs::remove_all(root);
}

}  // namespace
}  // namespace troupe
