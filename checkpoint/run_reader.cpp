#include "commit.hpp"
#include "files.hpp"

#include <troupe/records.hpp>
#include <troupe/run_storage.hpp>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

constexpr std::string_view checkpoint_prefix = "checkpoint_";

// Only whole lines count: what follows the last newline was torn by a crash.
void read_reports(const std::filesystem::path& run, RunContents& contents) {
  const auto file = run / "reports.jsonl";
  if (!std::filesystem::exists(file)) return;
  const auto text = files::read_all(file);
  std::size_t begin = 0;
  for (int number = 1;; ++number) {
    const auto end = text.find('\n', begin);
    if (end == std::string::npos) return;
    try {
      const auto json = nlohmann::ordered_json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                                      text.begin() + static_cast<std::ptrdiff_t>(end));
      contents.history.push_back(report_from_json(json, run));
    } catch (const std::exception& error) {
      throw Failure{Errc::FileCorrupt, file.string() + ", line " + std::to_string(number) + ": " + error.what()};
    }
    begin = end + 1;
  }
}

// A damaged checkpoint keeps its name too: the next one must not collide with it.
std::uint64_t index_in_name(const std::filesystem::path& directory) {
  const auto digits = directory.filename().string().substr(checkpoint_prefix.size());
  const bool number = !digits.empty() && digits.size() < 19 && digits.find_first_not_of("0123456789") == std::string::npos;
  return number ? std::stoull(digits) + 1 : 0;
}

void number_what_follows(const std::filesystem::path& run, RunContents& contents) {
  for (const auto& record : contents.history) {
    contents.next_report_index = std::max(contents.next_report_index, record.index + 1);
    contents.next_attempt = std::max(contents.next_attempt, record.attempt + 1);
  }
  for (const auto& entry : std::filesystem::directory_iterator{run}) {
    if (!entry.path().filename().string().starts_with(checkpoint_prefix)) continue;
    contents.next_report_index = std::max(contents.next_report_index, index_in_name(entry.path()));
  }
}

}  // namespace

RunContents read_run(const std::filesystem::path& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    throw Failure{Errc::NotFound, "there is no run at " + directory.string()};
  }
  RunContents contents;
  read_reports(directory, contents);
  detail::read_checkpoints(real_file_system(), directory, contents);
  number_what_follows(directory, contents);
  return contents;
}

Result Result::from_path(const std::filesystem::path& path) {
  const auto run = std::filesystem::absolute(path);
  const auto file = run / "result.json";
  std::error_code error;
  if (std::filesystem::exists(file, error)) {
    try {
      return result_from_json(nlohmann::ordered_json::parse(files::read_all(file)), run);
    } catch (const nlohmann::json::exception& parse_error) {
      throw Failure{Errc::FileCorrupt, file.string() + ": " + parse_error.what()};
    }
  }
  auto contents = read_run(run);
  if (contents.history.empty() && contents.checkpoints.empty()) {
    throw Failure{Errc::NotFound, run.string() + " holds no run: neither result.json, reports.jsonl nor checkpoints"};
  }
  Result result;
  result.path = run;
  result.metrics = latest_metrics(contents.history);
  result.history = std::move(contents.history);
  result.checkpoints = std::move(contents.checkpoints);
  if (!result.checkpoints.empty()) result.checkpoint = result.checkpoints.back();
  if (const auto* best = troupe::best_checkpoint(result.checkpoints, {})) result.best_checkpoint = *best;
  RunError broken;
  broken.code = Errc::Aborted;
  broken.message = "the run has no result.json: it is still running, or its driver was killed";
  result.error = std::move(broken);
  return result;
}

}  // namespace troupe
