#include "node_machine.hpp"

#include <sched.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace troupe::detail {

Resources resources_of_machine() {
  Resources all;
  cpu_set_t cpus;
  all.cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
  struct sysinfo info {};
  if (sysinfo(&info) == 0) all.memory_bytes = std::uint64_t{info.totalram} * info.mem_unit;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator{"/dev", error}) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("nvidia") && name.find_first_not_of("0123456789", 6) == std::string::npos && name.size() > 6) all.gpus += 1;
  }
  return all;
}

double load_of_machine() noexcept {
  double load = 0;
  return getloadavg(&load, 1) == 1 ? load : 0;
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "node";
}

}  // namespace troupe::detail
