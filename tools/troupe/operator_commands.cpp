#include "cluster_options.hpp"
#include "cluster_text.hpp"

#include <troupe/errors.hpp>

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>
#include <unistd.h>

namespace troupe::tools {

namespace {

using namespace std::chrono_literals;
using Json = nlohmann::ordered_json;

std::string dump(const Json& json, int indent) { return json.dump(indent, ' ', false, Json::error_handler_t::replace); }

struct LogsOptions {
  HeadOptions head;
  std::string run;
  int rank = -1;
  std::size_t tail = 100;
  bool follow = false;
};

void print(const LogsOptions& o, const detail::LogPage& page) {
  if (page.dropped > 0) std::fprintf(stderr, "troupe: %llu lines were lost before they could be read\n", static_cast<unsigned long long>(page.dropped));
  for (const auto& line : page.lines) {
    if (o.head.json) {
      std::puts(dump({{"run", line.run}, {"rank", line.rank}, {"node", line.node}, {"text", line.text}}, -1).c_str());
    } else {
      std::printf("[%s rank %d @%s] %s\n", printable(line.run).c_str(), line.rank, printable(line.node).c_str(), printable(line.text).c_str());
    }
  }
  std::fflush(stdout);
}

/// Prints pages until there is no more; the number to go on after.
std::uint64_t print_what_is_there(const LogsOptions& o, detail::OperatorClient& client, detail::LogsOrder order) {
  for (;;) {
    const auto page = client.logs(order, 0s);
    print(o, page);
    order.after = page.next;
    order.tail.reset();
    if (page.lines.empty()) return page.next;
  }
}

int logs(const LogsOptions& o) {
  const auto client = o.head.connect();
  detail::LogsOrder order{{o.run, {}}, 0, o.tail, false};
  if (o.rank >= 0) order.filter.rank = o.rank;
  order.after = print_what_is_there(o, *client, order);
  if (!o.follow) return 0;
  order.follow = true;
  order.tail.reset();
  try {
    for (;;) {
      const auto page = client->logs(order, 1s);
      print(o, page);
      order.after = page.next;
    }
  } catch (const Failure& failure) {
    if (failure.code() != Errc::Cancelled) throw;
    std::fprintf(stderr, "troupe: %s\n", failure.what());
  }
  return 0;
}

int top(const HeadOptions& o, double every, int times) {
  const auto client = o.connect();
  const bool is_terminal = isatty(STDOUT_FILENO) == 1 && !o.json;
  for (int i = 0; times == 0 || i < times; ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::duration<double>(every));
    const auto status = client->status();
    if (is_terminal) std::printf("\033[H\033[2J");
    if (o.json) std::puts(dump(detail::to_json(status), -1).c_str());
    else std::printf("%s, up %.0f s\n", o.head.c_str(), status.up_seconds), print_status(status);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace

Command add_status(CLI::App& app) {
  auto options = std::make_shared<HeadOptions>();
  auto* command = app.add_subcommand("status", "Shows a cluster's nodes and runs: ranks, steps per second, last report, restarts");
  options->add_to(*command);
  return [options] {
    const auto status = options->connect()->status();
    if (options->json) std::puts(dump(detail::to_json(status), 2).c_str());
    else print_status(status);
    return 0;
  };
}

Command add_top(CLI::App& app) {
  struct Options {
    HeadOptions head;
    double every = 1;
    int times = 0;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("top", "Shows the same again and again");
  options->head.add_to(*command);
  command->add_option("--every", options->every, "seconds between looks")->capture_default_str()->check(CLI::Range(0.1, 3600.0));
  command->add_option("--times", options->times, "looks so often; 0: until Ctrl-C")->capture_default_str()->check(CLI::NonNegativeNumber);
  return [options] { return top(options->head, options->every, options->times); };
}

Command add_logs(CLI::App& app) {
  auto options = std::make_shared<LogsOptions>();
  auto& o = *options;
  auto* command = app.add_subcommand("logs", "Prints what ranks print, as [RUN rank N @NODE]");
  o.head.add_to(*command);
  command->add_option("RUN", o.run, "of this run; without it: of all");
  command->add_option("--rank", o.rank, "of this rank")->check(CLI::NonNegativeNumber);
  command->add_option("--tail", o.tail, "begins so many lines before the newest")->capture_default_str();
  command->add_flag("-f,--follow", o.follow, "goes on until the program ends");
  return [options] { return logs(*options); };
}

Command add_stop(CLI::App& app) {
  struct Options {
    HeadOptions head;
    std::string run;
    bool now = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("stop", "Stops a run at its next step boundary, with a checkpoint");
  options->head.add_to(*command);
  command->add_option("RUN", options->run, "its name")->required();
  command->add_flag("--now", options->now, "ends its ranks at once; what came after the last checkpoint is lost");
  return [options] {
    options->head.connect()->stop(options->run, options->now);
    if (options->head.json) std::puts(R"({"ok": true})");
    else std::printf("%s: %s\n", options->run.c_str(), options->now ? "its ranks are ended" : "stops at its next step boundary");
    return 0;
  };
}

Command add_drain(CLI::App& app) {
  struct Options {
    HeadOptions head;
    std::string node;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("drain", "Takes a node's ranks elsewhere, and places none there any more");
  options->head.add_to(*command);
  command->add_option("NODE", options->node, "its name")->required();
  return [options] {
    options->head.connect()->drain(options->node);
    if (options->head.json) std::puts(R"({"ok": true})");
    else std::printf("%s drains; its runs go on elsewhere from a step boundary on\n", options->node.c_str());
    return 0;
  };
}

}  // namespace troupe::tools
