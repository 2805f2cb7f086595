#include <troupe/start_limits.hpp>

#include <sys/resource.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <latch>
#include <optional>
#include <sstream>
#include <vector>

namespace troupe {

namespace {

namespace fs = std::filesystem;

std::optional<rlim_t> limit_of(__rlimit_resource what) {
  rlimit limit{};
  if (getrlimit(what, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_cur;
}

/// The first word of a file; empty when there is none.
std::string word_in(const fs::path& file) {
  std::ifstream in{file};
  std::string word;
  in >> word;
  return word;
}

std::string in_megabytes(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MB"; }

std::uint64_t address_space_used(const fs::path& root) {
  const auto pages = word_in(root / "proc/self/statm");
  return std::strtoull(pages.c_str(), nullptr, 10) * 4096;
}

/// Of the nearest control group that limits its tasks. Inside a container the path may be that of outside: then the root of what is
/// mounted is the container's own.
std::string limit_of_group(const fs::path& root) {
  std::ifstream in{root / "proc/self/cgroup"};
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const auto controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",pids,") == std::string::npos) continue;
    const auto mount = root / "sys/fs/cgroup" / (controllers.empty() ? "" : "pids");
    auto path = fs::path{line.substr(second + 1)}.relative_path();
    for (;; path = path.parent_path()) {
      const auto most = word_in(mount / path / "pids.max");
      if (!most.empty() && most != "max") {
        return "pids.max of the control group = " + most + " tasks, " + word_in(mount / path / "pids.current") + " in use (docker --pids-limit, systemd TasksMax)";
      }
      if (path.empty()) break;
    }
  }
  return {};
}

}  // namespace

std::string limits_on_starting(const fs::path& root) {
  std::vector<std::string> limits;
  if (const auto most = limit_of(RLIMIT_NPROC)) {
    limits.push_back("RLIMIT_NPROC = " + std::to_string(*most) + " processes and threads of this user, in all its programs (ulimit -u)");
  }
  if (auto group = limit_of_group(root); !group.empty()) limits.push_back(std::move(group));
  if (const auto most = limit_of(RLIMIT_AS)) {
    limits.push_back("RLIMIT_AS = " + in_megabytes(*most) + " of address space, " + in_megabytes(address_space_used(root)) + " in use (ulimit -v)");
  }
  if (limits.empty()) {
    return "no limit is set on this process: the host may be out of memory or of thread numbers (sysctl kernel.threads-max, kernel.pid_max); use fewer ranks";
  }
  std::string text = "limits that are set: ";
  for (std::size_t i = 0; i < limits.size(); ++i) text += (i > 0 ? ", " : "") + limits[i];
  return text + "; raise the one that is reached, or use fewer ranks";
}

void require_threads(int count, const std::string& what) {
  std::latch all_tried{1};
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  const auto release = [&] {
    all_tried.count_down();
    for (auto& thread : threads) thread.join();
  };
  try {
    while (static_cast<int>(threads.size()) < count) threads.push_back(start_thread(what, [&all_tried] { all_tried.wait(); }));
  } catch (...) {
    release();
    throw;
  }
  release();
}

}  // namespace troupe
