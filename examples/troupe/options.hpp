#pragma once

#include <CLI/CLI.hpp>
#include <troupe/config.hpp>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// Parses a program's options. Returns the exit code with which `main` must end (after --help or a mistake, which
/// is explained on stderr with the nearest valid name), or nothing to go on.
inline std::optional<int> parse_options(CLI::App& app, int argc, char** argv) {
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  const auto extras = app.remaining();
  if (extras.empty()) return std::nullopt;
  std::vector<std::string> names;
  for (const auto* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  const auto word = extras.front().substr(0, extras.front().find('='));
  const auto nearest = nearest_name(word, names);
  std::fprintf(stderr, "%s: unknown option '%s'%s; --help lists all options\n", app.get_name().c_str(), word.c_str(),
               nearest.empty() ? "" : (", did you mean '" + nearest + "'?").c_str());
  return 2;
}

}  // namespace troupe
