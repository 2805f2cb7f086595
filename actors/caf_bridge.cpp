#include "exceptions.hpp"
#include "memory_kills.hpp"

#include <troupe/trainer.hpp>

#include <caf/scheduled_actor.hpp>

#include <exception>

namespace troupe {

void register_types(caf::actor_system_config& config) {
  // CAF 0.17 needs no ids for types that stay in one process; errors of ours are shown by name.
  config.add_error_category(caf::atom("troupe"), [](std::uint8_t code, caf::atom_value, const caf::message& text) {
    const std::string what = text.match_elements<std::string>() ? ": " + text.get_as<std::string>(0) : "";
    return std::string(name(static_cast<Errc>(code))) + what;
  });
}

void keep_exceptions(caf::scheduled_actor* self) {
  self->set_exception_handler([](std::exception_ptr& thrown) -> caf::error {
    const auto error = [](Errc code, const char* text) {
      return do_patiently([&] { return caf::error{static_cast<std::uint8_t>(code), caf::atom("troupe"), caf::make_message(std::string(text))}; });
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const Failure& failure) {
      return error(failure.code(), failure.what());
    } catch (const std::exception& other) {
      return error(ran_out_of_memory(other) ? Errc::OutOfMemory : Errc::Internal, other.what());
    } catch (...) {
      return error(Errc::Internal, "something that is no std::exception");
    }
  });
}

Errc code_of(const caf::error& reason) noexcept {
  return reason && reason.category() == caf::atom("troupe") ? static_cast<Errc>(reason.code()) : Errc::Internal;
}

}  // namespace troupe
