#pragma once

#include <troupe/caf_types.hpp>
#include <troupe/link.hpp>

#include <caf/actor.hpp>
#include <caf/send.hpp>
#include <type_traits>
#include <utility>
#include <variant>

namespace troupe::detail {

/// Puts what came over a link into an actor's mailbox, as the struct that it is.
inline void deliver(const caf::actor& to, LinkMessage message) {
  std::visit(
      [&](auto& content) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(content)>, Hello>) caf::anon_send(to, std::move(content));
      },
      message);
}

}  // namespace troupe::detail
