#pragma once

// A benchmark whose ranks are processes: they print figures, one JSON object a line, and the first process shows and keeps them.

#include <troupe/errors.hpp>

#include <nlohmann/json.hpp>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace troupe::bench {

/// "16MB".
inline std::string size_name(std::size_t bytes) { return bytes >= (1U << 20) ? std::to_string(bytes >> 20) + "MB" : std::to_string(bytes >> 10) + "KB"; }

/// Microseconds a call, of `iterations`.
template <class F>
double time_us(int iterations, F&& body) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < iterations; ++i) body();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / iterations;
}

/// The upper median.
inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

/// A rank's line: less is better.
inline void print_row(const std::string& figure, double ours, double peer, const char* peer_name, const char* unit, double goal, std::size_t runs) {
  const nlohmann::ordered_json row{{"figure", figure}, {"ours", ours}, {"peer", peer}, {"peer_name", peer_name}, {"unit", unit}, {"ratio", peer / ours},
                                   {"goal", goal}, {"holds", peer / ours >= goal}, {"runs", runs}};
  std::printf("%s\n", row.dump().c_str());
}

/// A directory for the ranks to meet in, gone at the end.
struct MeetingPlace {
  std::string path = (std::filesystem::temp_directory_path() / "troupe-bench-XXXXXX").string();
  MeetingPlace() {
    if (mkdtemp(path.data()) == nullptr) throw Failure{Errc::StorageUnavailable, path};
  }
  MeetingPlace(const MeetingPlace&) = delete;
  ~MeetingPlace() { std::filesystem::remove_all(path); }
};

struct RankCommand {
  std::vector<std::string> argv;
  std::vector<std::pair<int, int>> descriptors;  ///< of this process, and their numbers in the rank's
};

/// What the ranks print. Throws Failure when one fails.
inline std::vector<nlohmann::ordered_json> rows_of(const std::vector<RankCommand>& commands) {
  int ends[2];
  if (pipe(ends) != 0) throw Failure{Errc::StartFailed, "pipe"};
  std::vector<pid_t> ranks;
  for (const auto& command : commands) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    for (const auto& [ours, theirs] : command.descriptors) posix_spawn_file_actions_adddup2(&actions, ours, theirs);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    std::vector<char*> argv;
    for (const auto& a : command.argv) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    if (posix_spawnp(&ranks.emplace_back(), argv[0], &actions, nullptr, argv.data(), environ) != 0) throw Failure{Errc::StartFailed, command.argv[0]};
    posix_spawn_file_actions_destroy(&actions);
  }
  close(ends[1]);
  std::string text;
  char bytes[4096];
  for (ssize_t n; (n = read(ends[0], bytes, sizeof bytes)) > 0;) text.append(bytes, static_cast<std::size_t>(n));
  close(ends[0]);
  bool ok = true;
  for (const auto pid : ranks) {
    int status = 0;
    waitpid(pid, &status, 0);
    ok = ok && status == 0;
  }
  if (!ok) throw Failure{Errc::RankExited, "a rank of the benchmark failed"};
  std::vector<nlohmann::ordered_json> rows;
  for (std::size_t at = 0, end; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
    rows.push_back(nlohmann::ordered_json::parse(text.substr(at, end - at)));
  return rows;
}

/// Shows rows as a table, and writes them to the file of `--json FILE`.
inline void show_rows(const nlohmann::ordered_json& rows, int argc, char** argv) {
  std::printf("%-46s %14s %14s %-6s %9s %6s\n", "figure", "ours", "peer", "unit", "times", "goal");
  for (const auto& row : rows)
    std::printf("%-46s %14.2f %14.2f %-6s %9.2f %6.4g %s\n", row["figure"].get<std::string>().c_str(), row["ours"].get<double>(), row["peer"].get<double>(),
                row["unit"].get<std::string>().c_str(), row["ratio"].get<double>(), row["goal"].get<double>(), row["holds"].get<bool>() ? "" : "missed");
  if (argc == 3 && std::string{argv[1]} == "--json") std::ofstream{argv[2]} << rows.dump(1) << '\n';
}

}  // namespace troupe::bench
