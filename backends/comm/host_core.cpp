#include "host_core.hpp"

#include "local_access.hpp"

#include <troupe/start_limits.hpp>

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace troupe::detail {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// How often the group inside the host is looked at; an abort there must be everywhere within 100 ms.
constexpr milliseconds kLook{20};
constexpr std::chrono::milliseconds kLookAlone{50};
constexpr milliseconds kTellPatience{100};
constexpr std::size_t kMostText = 4000;

/// Says why the group ends; followed by `length` bytes of text.
struct EndRecord {
  std::uint32_t magic = 0x74726e64;
  std::uint16_t code = 0;
  std::uint16_t length = 0;
};

}  // namespace

HostCore::HostCore(MeetingPlan plan, std::vector<HostLink> links, std::unique_ptr<Communicator> local)
    : plan_(std::move(plan)), links_(std::move(links)), local_(std::move(local)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (wake_.get() < 0) throw Failure{Errc::StartFailed, std::string{"hosts: eventfd: "} + std::strerror(errno) + " (see ulimit -n)"};
  if (!links_.empty()) watcher_ = start_thread("the failures of other hosts", [this] { watch(); });
}

HostCore::~HostCore() {
  stop_.store(true);
  (void)eventfd_write(wake_.get(), 1);
  if (watcher_.joinable()) watcher_.join();
}

void HostCore::fail(Errc code, const std::string& text) noexcept {
  std::vector<std::weak_ptr<HostCore>> children;
  {
    const std::lock_guard lock{mutex_};
    if (!failure_.ok()) return;
    failure_ = {code, text};
    children.swap(children_);
  }
  broken_.store(true, std::memory_order_release);
  fail_group(*local_, code, text);
  (void)eventfd_write(wake_.get(), 1);
  for (const auto& link : links_) link.data().shut();
  for (const auto& one : children)
    if (const auto child = one.lock()) child->fail(code, text);
}

Outcome HostCore::failure() const {
  const std::lock_guard lock{mutex_};
  return failure_;
}

void HostCore::adopt(const std::shared_ptr<HostCore>& child) {
  {
    const std::lock_guard lock{mutex_};
    std::erase_if(children_, [](const auto& one) { return one.expired(); });
    if (failure_.ok()) {
      children_.push_back(child);
      return;
    }
  }
  child->fail(failure().code(), failure().text());
}

std::uint64_t HostCore::wire_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& link : links_) sum += link.data().wire_bytes() + link.control().wire_bytes();
  return sum;
}

void HostCore::watch() {
  std::vector<Heard> heard(links_.size());
  bool told = false;
  for (std::size_t i = 0; i < links_.size(); ++i) hear(i, heard[i]);  // what came along with the handshake
  while (!stop_.load()) {
    look_around(heard);
    if (auto failed = failure_of(*local_)) fail(failed->code(), failed->text());
    if (broken() && !told) {
      tell();
      told = true;
    }
  }
  if (broken() && !told) tell();
}

void HostCore::look_around(std::vector<Heard>& heard) {
  std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}};
  for (std::size_t i = 0; i < links_.size(); ++i)
    fds.push_back({heard[i].gone ? -1 : links_[i].control().fd(), links_[i].control().wanted(), 0});
  // Also of a host with one rank: whoever started it may abort its memory.
  const auto look = local_->size() == 1 ? kLookAlone : kLook;
  (void)poll(fds.data(), fds.size(), static_cast<int>(broken() ? 1000 : look.count()));
  if (fds[0].revents != 0) {
    eventfd_t count = 0;
    (void)eventfd_read(wake_.get(), &count);
  }
  for (std::size_t i = 0; i < links_.size(); ++i)
    if (fds[i + 1].revents != 0) hear(i, heard[i]);
}

void HostCore::hear(std::size_t link, Heard& heard) {
  auto& stream = links_[link].control();
  (void)stream.flush();
  auto& bytes = heard.bytes;
  const auto before = bytes.size();
  bytes.resize(sizeof(EndRecord) + kMostText);
  bytes.resize(before + stream.read(std::span{bytes}.subspan(before)));
  heard.gone = stream.closed();
  EndRecord record;
  if (bytes.size() < sizeof record) return;
  std::memcpy(&record, bytes.data(), sizeof record);
  const auto length = std::min<std::size_t>(record.length, kMostText);
  if (record.magic != EndRecord{}.magic || record.code == 0)
    return fail(Errc::ProtocolError, "rank " + std::to_string(plan_.topology.name_of(links_[link].rank)) + " sent what is no record");
  if (bytes.size() < sizeof record + length) return;
  fail(static_cast<Errc>(record.code), {reinterpret_cast<const char*>(bytes.data() + sizeof record), length});
  heard.gone = true;
}

void HostCore::tell() noexcept {
  const auto failed = failure();
  const auto text = failed.text().substr(0, kMostText);
  const EndRecord record{EndRecord{}.magic, static_cast<std::uint16_t>(failed.code()), static_cast<std::uint16_t>(text.size())};
  std::vector<std::byte> bytes(sizeof record + text.size());
  std::memcpy(bytes.data(), &record, sizeof record);
  std::memcpy(bytes.data() + sizeof record, text.data(), text.size());
  for (auto& link : links_) (void)link.control().write(bytes);
  const auto until = Clock::now() + kTellPatience;
  for (auto& link : links_) {
    while (!link.control().closed() && !link.control().flush() && Clock::now() < until) {
      pollfd ready{link.control().fd(), POLLOUT, 0};
      (void)poll(&ready, 1, 10);
    }
  }
}

}  // namespace troupe::detail
