#pragma once

#include <troupe/wire.hpp>

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <caf/behavior.hpp>
#include <caf/event_based_actor.hpp>
#include <caf/message_handler.hpp>
#include <caf/response_promise.hpp>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

namespace troupe {

/// The message types of a user's that may go between the programs of a cluster: nothing else is ever decoded.
///
/// A type has `template <class Archive> void serialize(Archive& ar, T& m) { ar(m.a, m.b); }` as for cereal, and
/// CAF_ALLOW_UNSAFE_MESSAGE_TYPE(T). What comes from another node is checked against its length before anything is allocated.
class MailTypes {
 public:
  /// @param name of the type, the same in all programs of the cluster
  template <class T>
  MailTypes& add(std::string name);

  // ---- what ClusterMail does with them
  using Send = std::function<void(const std::string& type, std::string bytes, caf::response_promise promise)>;
  using Answer = std::function<void(const std::string& type, std::string bytes)>;
  struct Type {
    /// Of a proxy: what is sent to it goes to `send`.
    std::function<caf::message_handler(caf::event_based_actor* self, const Send& send)> outward;
    /// Of what an actor answers.
    std::function<caf::message_handler(const Answer& answer)> answered;
    /// Throws Failure{ProtocolError}.
    std::function<caf::message(std::string_view bytes)> decode;
  };
  [[nodiscard]] const std::map<std::string, Type>& types() const noexcept { return types_; }

 private:
  std::map<std::string, Type> types_;
};

/// Users' actors on other nodes of a cluster, by name. One for a program; give it to ClusterOptions::mail or NodeOptions::mail.
/// Messages arrive once and in order, as long as the node's link lasts. Threads: any.
class ClusterMail {
 public:
  virtual ~ClusterMail() = default;
  /// @param system outlives it
  [[nodiscard]] static std::shared_ptr<ClusterMail> make(caf::actor_system& system, MailTypes types);
  /// Makes `actor` reachable as `name`; an empty handle takes it back.
  virtual void publish(const std::string& name, caf::actor actor) = 0;
  /// An actor that stands for `name` on `node`, empty: on the head. It takes the registered types, sent or requested; a request is answered with a
  /// registered type, with nothing, or with an error: Errc::NotFound (no such node or name), Errc::NodeLost (the node is gone; also while it
  /// worked). It need not be there yet.
  [[nodiscard]] virtual caf::actor find(const std::string& node, const std::string& name) = 0;
};

template <class T>
MailTypes& MailTypes::add(std::string name) {
  const auto encode = [](const T& value) {
    std::string bytes;
    detail::WireOutput out{bytes};
    out(value);
    return bytes;
  };
  Type type;
  type.outward = [name, encode](caf::event_based_actor* self, const Send& send) {
    return caf::message_handler{[self, send, name, encode](const T& value) {
      auto promise = self->make_response_promise();
      send(name, encode(value), promise);
      return promise;
    }};
  };
  type.answered = [name, encode](const Answer& answer) {
    return caf::message_handler{[answer, name, encode](const T& value) { answer(name, encode(value)); }};
  };
  type.decode = [name](std::string_view bytes) {
    detail::WireInput in{bytes};
    T value{};
    in(value);
    if (!in.at_end()) detail::bad("a " + name + " has bytes after its end");
    return caf::make_message(std::move(value));
  };
  types_[std::move(name)] = std::move(type);
  return *this;
}

}  // namespace troupe
