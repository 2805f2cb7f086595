#include <troupe/post_mortem.hpp>

#include <troupe/failure_rules.hpp>
#include <troupe/records.hpp>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace troupe {

namespace {

constexpr std::size_t most_details = 20'000, most_lines = 20;

std::string seconds(double time_s) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", time_s);
  return text;
}

std::string steps(std::uint64_t count) { return std::to_string(count) + (count == 1 ? " step" : " steps"); }

/// What ranks print may hold anything, also the end of a code block.
std::string block(const std::string& text) {
  std::string fence = "```";
  while (text.find(fence) != std::string::npos) fence += '`';
  return fence + "text\n" + text + (text.empty() || text.back() == '\n' ? "" : "\n") + fence + "\n";
}

std::string lost(const PostMortem& page) {
  const auto from = page.resumes_from.value_or("the beginning: nothing had been kept");
  auto text = std::string(page.goes_on ? "Training goes on from " : "The next start goes on from ") + from + ". ";
  if (!page.lost_steps) return text + "Steps after it are done again.";
  if (*page.lost_steps == 0) return text + "No step is lost.";
  return text + steps(*page.lost_steps) + (*page.lost_steps == 1 ? " is" : " are") + " done again.";
}

std::string what_to_do(const RunError& error) {
  if (error.code == Errc::RankKilled && error.signal && *error.signal != SIGKILL) {
    return "It crashed by itself: the backtrace below names the place. `addr2line -Cfie PROGRAM 0xADDRESS` gives lines of a program built with -g.";
  }
  if (error.code == Errc::RankKilled) {
    return "It was killed from outside: look at the machine's log (`dmesg`), and for whoever may kill processes here: a scheduler, a person.";
  }
  std::string text{explain(error.code)};
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  if (const auto advice = failure_rule(error.code).advice; !advice.empty()) text += ". To do: " + std::string(advice);
  return text + ".";
}

void add_list(std::string& text, const char* title, const std::vector<std::string>& lines) {
  if (lines.empty()) return;
  text += "\n## " + std::string(title) + "\n\n";
  for (const auto& line : lines) text += "- " + line + "\n";
}

}  // namespace

std::string post_mortem_name(std::uint64_t attempt) { return "postmortem_" + std::to_string(attempt); }

std::string cause_of(const PostMortem& page) {
  const auto& error = page.error;
  std::string text;
  if (error.rank) {
    text = "rank " + std::to_string(*error.rank);
    const auto& where = error.node.empty() ? page.node : error.node;
    if (error.pid) text += " (process " + std::to_string(*error.pid) + (where.empty() ? "" : " on " + where) + ")";
    else if (!error.node.empty()) text += " (on " + error.node + ")";
    if (error.step) text += *error.step == 0 ? ", in its first step" : ", after step " + std::to_string(*error.step);
    text += ": ";
  }
  return text + error.message;
}

std::string to_markdown(const PostMortem& page) {
  std::string text = "# " + page.run_name + ", attempt " + std::to_string(page.attempt) + ": " + std::string(name(page.error.code)) + "\n\n";
  text += "**What happened.** " + cause_of(page) + ".\n\n";
  text += "**Where.** " + std::to_string(page.world_size) + " ranks as " + page.placement + (page.node.empty() ? "" : " on " + page.node) + ", " +
          seconds(page.time_s) + " after the run began (" + page.date + ").\n\n";
  text += "**What is lost.** " + lost(page) + "\n\n";
  text += "**What follows.** " + std::string(page.goes_on ? "Another attempt: " : "The run ends: ") + page.decision + ".\n\n";
  text += "**What to do.** " + what_to_do(page.error) + "\n";
  add_list(text, "Other errors of this attempt", page.other_errors);
  if (!page.error.last_lines.empty()) {
    const auto& lines = page.error.last_lines;
    std::string last;
    for (auto i = lines.size() - std::min(lines.size(), most_lines); i < lines.size(); ++i) last += lines[i] + "\n";
    text += "\n## What the rank printed last\n\n" + block(last);
  }
  if (!page.error.details.empty()) {
    const auto& details = page.error.details;
    const bool cut = details.size() > most_details;  // the newest is at the end of each part; the JSON has all
    text += "\n## What it was at\n\n" + block(cut ? details.substr(0, most_details / 2) + "\n… (all of it is in the JSON file)\n" + details.substr(details.size() - most_details / 2) : details);
  }
  add_list(text, "Warnings of the run so far", page.warnings);
  return text;
}

nlohmann::ordered_json to_json(const PostMortem& page) {
  nlohmann::ordered_json json{{"run", page.run_name},     {"attempt", page.attempt},     {"node", page.node},
                              {"world_size", page.world_size}, {"placement", page.placement}, {"time_s", page.time_s},
                              {"date", page.date},        {"cause", cause_of(page)},     {"error", to_json(page.error)},
                              {"goes_on", page.goes_on},  {"decision", page.decision}};
  if (page.resumes_from) json["resumes_from"] = *page.resumes_from;
  if (page.lost_steps) json["lost_steps"] = *page.lost_steps;
  json["other_errors"] = page.other_errors;
  json["warnings"] = page.warnings;
  json["advice"] = what_to_do(page.error);
  return json;
}

}  // namespace troupe
