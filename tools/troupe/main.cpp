// troupe: looks at users' configuration files and models. `troupe --help` says how.
#include "commands.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>

#include <cstdio>
#include <utility>
#include <vector>

namespace {

/// One line and exit code 2 for a wrong word or option.
int wrong_use(const CLI::App& app, const std::string& text) {
  std::fprintf(stderr, "troupe: %s\nTry '%s --help'.\n", text.c_str(), app.get_parent() == nullptr ? "troupe" : ("troupe " + app.get_name()).c_str());
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

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Troupe: distributed training as a troupe of actors.", "troupe"};
  app.allow_extras();
  const std::vector<std::pair<std::string, troupe::tools::Command>> commands{{"config", troupe::tools::add_config(app)},
                                                                             {"estimate-memory", troupe::tools::add_estimate_memory(app)}};
  const CLI::App* used = &app;
  for (const auto& command : commands) app.get_subcommand(command.first)->allow_extras();
  try {
    try {
      app.parse(argc, argv);
    } catch (const CLI::Success& help) {
      return app.exit(help);
    } catch (const CLI::ParseError& error) {
      if (const auto chosen = app.get_subcommands(); !chosen.empty()) used = chosen.front();
      if (const auto extra = used->remaining(); !extra.empty() && used != &app) {
        return wrong_use(*used, "'" + extra.front() + "' is unknown" + did_you_mean(*used, extra.front()));
      }
      return wrong_use(*used, error.what());
    }
    if (const auto chosen = app.get_subcommands(); !chosen.empty()) used = chosen.front();
    for (const auto& word : used->remaining()) {
      return wrong_use(*used, "'" + word + "' is unknown" + did_you_mean(*used, word));
    }
    for (const auto& [name, run] : commands) {
      if (used->get_name() == name) return run();
    }
    return wrong_use(app, "say what to do: config or estimate-memory");
  } catch (const troupe::Failure& failure) {
    std::fprintf(stderr, "troupe: %s\n", failure.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "troupe: %s\n", error.what());
  }
  return 1;
}
