#include "mail_office.hpp"

#include <caf/all.hpp>

#include <utility>

namespace troupe::detail {

/// The office to a proxy: the answer to its request.
struct MailAnswered {
  UserMail letter;
};
/// The office to its desk: a letter for an actor of this program.
struct MailArrived {
  UserMail letter;
  caf::actor to;
};

}  // namespace troupe::detail

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::MailAnswered)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::detail::MailArrived)

namespace troupe::detail {

namespace {

caf::error error_of(Errc code, const std::string& text) {
  return {static_cast<std::uint8_t>(code), caf::atom("troupe"), caf::make_message(text)};
}

std::string place_of(const std::string& node) { return node.empty() ? "the head" : "node " + node; }

}  // namespace

// ---- the actors -----------------------------------------------------------------------------------------------

struct ProxyActor {
  static inline const char* name = "troupe.mail_proxy";
  std::map<std::uint64_t, caf::response_promise> asked;

  static caf::behavior run(caf::stateful_actor<ProxyActor>* self, const std::weak_ptr<MailOffice>& office, const MailTypes& types,
                           const std::string& node, const std::string& to) {
    const MailTypes::Send send = [self, office, node, to](const std::string& type, std::string bytes, caf::response_promise promise) {
      const auto open = office.lock();
      if (!open) return promise.deliver(error_of(Errc::Aborted, "this program's part in the cluster has ended"));
      const bool is_request = !promise.async();
      UserMail letter;
      letter.id = ++open->ids_;
      letter.to_node = node;
      letter.to = to;
      letter.type = type;
      letter.bytes = std::move(bytes);
      if (is_request) self->state.asked.emplace(letter.id, std::move(promise));
      open->send(caf::actor_cast<caf::actor>(self), std::move(letter), is_request);
    };
    caf::message_handler all{[self, types](const MailAnswered& news) { self->state.answered(news.letter, types); }};
    for (const auto& [name, type] : types.types()) all = all.or_else(type.outward(self, send));
    return all;
  }

  void answered(const UserMail& letter, const MailTypes& types) {
    const auto found = asked.find(letter.id);
    if (found == asked.end()) return;
    auto promise = std::move(found->second);
    asked.erase(found);
    if (letter.error != Errc::Ok) return promise.deliver(error_of(letter.error, letter.bytes));
    if (letter.type.empty()) return promise.deliver(caf::unit);
    try {
      promise.deliver(types.types().at(letter.type).decode(letter.bytes));
    } catch (const std::exception& error) {
      promise.deliver(error_of(Errc::ProtocolError, place_of(letter.to_node) + " answered with a damaged " + letter.type + ": " + error.what()));
    }
  }
};

struct DeskActor {
  static inline const char* name = "troupe.mail_desk";

  static caf::behavior run(caf::stateful_actor<DeskActor>* self, const std::weak_ptr<MailOffice>& office, const MailTypes& types) {
    self->set_error_handler([](caf::error&) {});
    return {[self, office, types](MailArrived& news) { deliver(self, office, types, news); }};
  }

  static void deliver(caf::stateful_actor<DeskActor>* self, const std::weak_ptr<MailOffice>& office, const MailTypes& types, MailArrived& news) {
    const auto open = office.lock();
    if (!open) return;
    const auto& letter = news.letter;
    const auto type = types.types().find(letter.type);
    if (type == types.types().end()) return open->refuse(letter, Errc::Unsupported, "no message type '" + letter.type + "' is registered there");
    caf::message message;
    try {
      message = type->second.decode(letter.bytes);
    } catch (const std::exception& error) {
      return open->refuse(letter, Errc::ProtocolError, std::string("the ") + letter.type + " is damaged: " + error.what());
    }
    if (!letter.wants_answer) return self->send(news.to, message);
    const auto asked = self->request(news.to, caf::infinite, message);
    auto slip = letter;
    slip.bytes.clear();
    const auto answer = [office, slip](const std::string& name, std::string bytes) {
      if (const auto here = office.lock()) here->answer(slip, name, std::move(bytes));
    };
    caf::message_handler all{[answer] { answer("", {}); },
                             [office, slip, self](const caf::error& error) {
                               if (const auto here = office.lock()) here->refuse(slip, Errc::NotFound, slip.to + ": " + self->system().render(error));
                             }};
    for (const auto& [name, each] : types.types()) all = all.or_else(each.answered(answer));
    self->add_multiplexed_response_handler(asked.id(), caf::behavior{all});
  }
};

// ---- the office -----------------------------------------------------------------------------------------------

MailOffice::MailOffice(caf::actor_system& system, MailTypes types) : types_(std::move(types)), system_(system) {}

MailOffice::~MailOffice() {
  if (desk_) caf::anon_send_exit(desk_, caf::exit_reason::user_shutdown);
}

void MailOffice::publish(const std::string& name, caf::actor actor) {
  const std::lock_guard lock{mutex_};
  if (actor) {
    published_[name] = std::move(actor);
  } else {
    published_.erase(name);
  }
}

caf::actor MailOffice::find(const std::string& node, const std::string& name) {
  return system_.spawn(ProxyActor::run, weak_from_this(), types_, node, name);
}

void MailOffice::connect(const std::string& node, Carrier carrier) {
  const std::lock_guard lock{mutex_};
  node_ = node;
  carrier_ = std::move(carrier);
}

void MailOffice::disconnect(const std::string& why) {
  {
    const std::lock_guard lock{mutex_};
    carrier_ = nullptr;
    why_away_ = why;
  }
  lost({}, why);
}

// On a node every letter goes by the head.
void MailOffice::lost(const std::string& node, const std::string& why) {
  std::map<std::uint64_t, Waiting> gone;
  {
    const std::lock_guard lock{mutex_};
    for (auto entry = waiting_.begin(); entry != waiting_.end();) {
      const auto here = entry++;
      if (!carrier_ || here->second.node == node) gone.insert(waiting_.extract(here));
    }
  }
  for (const auto& [id, waiting] : gone) {
    UserMail letter;
    letter.id = id;
    letter.error = Errc::NodeLost;
    letter.bytes = place_of(waiting.node) + ": " + why;
    caf::anon_send(waiting.proxy, MailAnswered{std::move(letter)});
  }
}

// Under the lock, so that none is on its way once the link was disconnected. A carrier only queues.
Outcome MailOffice::carry(const UserMail& letter) {
  const std::lock_guard lock{mutex_};
  return carrier_ ? carrier_(letter) : Outcome{Errc::NodeLost, why_away_};
}

void MailOffice::send(const caf::actor& proxy, UserMail letter, bool is_request) {
  letter.wants_answer = is_request;
  {
    const std::lock_guard lock{mutex_};
    letter.from_node = node_;
    if (is_request) waiting_[letter.id] = {letter.to_node, proxy};
  }
  if (const auto sent = carry(letter); !sent.ok() && is_request) {
    letter.error = sent.code();
    letter.bytes = sent.text();
    answered(std::move(letter));
  }
}

void MailOffice::arrived(UserMail letter) {
  if (letter.is_answer) return answered(std::move(letter));
  caf::actor to;
  {
    const std::lock_guard lock{mutex_};
    if (const auto found = published_.find(letter.to); found != published_.end()) to = found->second;
    if (!desk_) desk_ = system_.spawn(DeskActor::run, weak_from_this(), types_);
  }
  if (!to) return refuse(letter, Errc::NotFound, "there is no actor '" + letter.to + "' on " + place_of(letter.to_node));
  caf::anon_send(desk_, MailArrived{std::move(letter), std::move(to)});
}

void MailOffice::answer(UserMail to, const std::string& type, std::string bytes) {
  std::swap(to.to_node, to.from_node);
  to.is_answer = true;
  to.type = type;
  to.bytes = std::move(bytes);
  (void)carry(to);  // not ok: the one who asked is told of the link's end
}

void MailOffice::refuse(UserMail to, Errc code, const std::string& text) {
  if (!to.wants_answer) return;
  to.error = code;
  answer(std::move(to), {}, text);
}

void MailOffice::answered(UserMail letter) {
  caf::actor proxy;
  {
    const std::lock_guard lock{mutex_};
    const auto found = waiting_.find(letter.id);
    if (found == waiting_.end()) return;
    proxy = std::move(found->second.proxy);
    waiting_.erase(found);
  }
  caf::anon_send(proxy, MailAnswered{std::move(letter)});
}

}  // namespace troupe::detail

namespace troupe {

std::shared_ptr<ClusterMail> ClusterMail::make(caf::actor_system& system, MailTypes types) {
  return std::make_shared<detail::MailOffice>(system, std::move(types));
}

}  // namespace troupe
