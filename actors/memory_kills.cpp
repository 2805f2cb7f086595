#include "memory_kills.hpp"

#include <cxxabi.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <sstream>
#include <string_view>
#include <typeinfo>
#include <vector>

namespace troupe {

namespace {

namespace fs = std::filesystem;

/// The number after `key` at the begin of a line: "oom_kill 3".
std::optional<std::uint64_t> count_in(const fs::path& file, const std::string& key) {
  std::ifstream in{file};
  for (std::string line; std::getline(in, line);) {
    std::istringstream words{line};
    std::string first;
    std::uint64_t count = 0;
    if (words >> first >> count && first == key) return count;
  }
  return std::nullopt;
}

/// Files in which this process's control groups count, the nearest first. Inside a container the path may be that of outside: then
/// the root of what is mounted is the container's own.
std::vector<fs::path> group_files(const fs::path& root) {
  std::vector<fs::path> files;
  std::ifstream in{root / "proc/self/cgroup"};
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const auto controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const auto path = fs::path{line.substr(second + 1)}.relative_path();
    if (controllers == ",,") {
      files.push_back(root / "sys/fs/cgroup" / path / "memory.events");
      files.push_back(root / "sys/fs/cgroup/memory.events");
    } else if (controllers.find(",memory,") != std::string::npos) {
      files.push_back(root / "sys/fs/cgroup/memory" / path / "memory.oom_control");
      files.push_back(root / "sys/fs/cgroup/memory/memory.oom_control");
    }
  }
  return files;
}

}  // namespace

bool ran_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return true;
  const std::unique_ptr<char, void (*)(void*)> type{abi::__cxa_demangle(typeid(error).name(), nullptr, nullptr, nullptr), std::free};
  if (type && std::string_view{type.get()} == "c10::OutOfMemoryError") return true;
  const std::string_view what = error.what();
  return what.find("DefaultCPUAllocator: can't allocate memory") != std::string_view::npos || what.find("CUDA out of memory") != std::string_view::npos;
}

std::optional<MemoryKills> memory_kills(const fs::path& root) {
  for (const auto& file : group_files(root)) {
    if (const auto count = count_in(file, "oom_kill")) return MemoryKills{*count, file.string(), true};
  }
  const auto machine = root / "proc/vmstat";
  if (const auto count = count_in(machine, "oom_kill")) return MemoryKills{*count, machine.string(), false};
  return std::nullopt;
}

std::string memory_verdict(const std::optional<MemoryKills>& before, const std::optional<MemoryKills>& after) {
  if (!before || !after || before->where != after->where || after->count <= before->count) return {};
  return std::string(after->of_group ? "probably by the kernel, because memory ran out" : "perhaps by the kernel, because the machine's memory ran out") + ": oom_kill in " +
         after->where + " went from " + std::to_string(before->count) + " to " + std::to_string(after->count);
}

}  // namespace troupe
