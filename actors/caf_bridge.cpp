#include <troupe/trainer.hpp>

namespace troupe {

void register_types(caf::actor_system_config& config) {
  // CAF 0.17 needs no ids for types that stay in one process; errors of ours are shown by name.
  config.add_error_category(caf::atom("troupe"), [](std::uint8_t code, caf::atom_value, const caf::message& text) {
    const std::string what = text.match_elements<std::string>() ? ": " + text.get_as<std::string>(0) : "";
    return std::string(name(static_cast<Errc>(code))) + what;
  });
}

}  // namespace troupe
