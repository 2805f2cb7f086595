// troupe: looks at users' configuration files, models and checkpoints, converts models, and makes certificates. `troupe --help` says how.
#include "commands.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <csignal>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace {

std::string whole_name(const CLI::App& app) { return app.get_parent() == nullptr ? app.get_name() : whole_name(*app.get_parent()) + " " + app.get_name(); }

/// One line and exit code 2 for a wrong word or option.
int wrong_use(const CLI::App& app, const std::string& text) {
  std::fprintf(stderr, "troupe: %s\nTry '%s --help'.\n", text.c_str(), whole_name(app).c_str());
  return 2;
}

/// What of `app` the user may have meant by `word`.
std::string did_you_mean(const CLI::App& app, const std::string& word) {
  std::vector<std::string> names;
  if (word.starts_with("-")) {
    for (const auto* option : app.get_options()) {
      for (const auto& name : option->get_lnames()) names.push_back("--" + name);
    }
  } else {
    for (const auto* command : app.get_subcommands([](const CLI::App*) { return true; })) names.push_back(command->get_name());
  }
  const auto nearest = troupe::nearest_name(word.substr(0, word.find('=')), names);
  return nearest.empty() ? "" : "; did you mean '" + nearest + "'?";
}

/// The innermost command that the user named.
const CLI::App& used_of(const CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : used_of(*chosen.front());
}

int run(CLI::App& app, const std::vector<std::pair<std::string, troupe::tools::Command>>& commands, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    const auto& used = used_of(app);
    if (const auto extra = used.remaining(); !extra.empty() && &used != &app) {
      return wrong_use(used, "'" + extra.front() + "' is unknown" + did_you_mean(used, extra.front()));
    }
    return wrong_use(used, error.what());
  }
  const auto& used = used_of(app);
  for (const auto& word : used.remaining()) {
    if (word != "--") return wrong_use(used, "'" + word + "' is unknown" + did_you_mean(used, word));
  }
  try {
    for (const auto& [name, command] : commands) {
      if (app.got_subcommand(name)) return command();
    }
    throw troupe::tools::WrongUse{"say what to do: certs, chaos, checkpoint, config, convert or estimate-memory"};
  } catch (const troupe::tools::WrongUse& wrong) {
    return wrong_use(used, wrong.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_DFL);  // `troupe … | head` ends without a word
  CLI::App app{"Troupe: distributed training as a troupe of actors.", "troupe"};
  app.allow_extras();
  const std::vector<std::pair<std::string, troupe::tools::Command>> commands{{"certs", troupe::tools::add_certs(app)},
                                                                             {"chaos", troupe::tools::add_chaos(app)},
                                                                             {"checkpoint", troupe::tools::add_checkpoint(app)},
                                                                             {"config", troupe::tools::add_config(app)},
                                                                             {"convert", troupe::tools::add_convert(app)},
                                                                             {"drain", troupe::tools::add_drain(app)},
                                                                             {"estimate-memory", troupe::tools::add_estimate_memory(app)},
                                                                             {"launch", troupe::tools::add_launch(app)},
                                                                             {"logs", troupe::tools::add_logs(app)},
                                                                             {"node", troupe::tools::add_node(app)},
                                                                             {"status", troupe::tools::add_status(app)},
                                                                             {"stop", troupe::tools::add_stop(app)},
                                                                             {"top", troupe::tools::add_top(app)}};
  for (const auto& command : commands) app.get_subcommand(command.first)->allow_extras();
  try {
    return run(app, commands, argc, argv);
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "troupe: %s\n", failure.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "troupe: %s\n", error.what());
  }
  return 1;
}
