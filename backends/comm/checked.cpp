#include "blame.hpp"
#include "packed.hpp"
#include "request.hpp"

#include <troupe/checked_communicator.hpp>

#include <algorithm>
#include <cstring>

namespace troupe {

namespace {

/// What ranks compare: the same bytes when they are about to do the same.
struct Fingerprint {
  std::uint64_t sequence, what, bytes;
  CollectiveLabel label;
  bool operator==(const Fingerprint& other) const { return std::memcmp(this, &other, sizeof *this) == 0; }
  [[nodiscard]] std::string text() const { return describe(detail::unpack(what, bytes), sequence, label); }
};
static_assert(std::has_unique_object_representations_v<Fingerprint>);

class CheckedCommunicator final : public detail::CommunicatorDecorator {
 public:
  CheckedCommunicator(std::unique_ptr<Communicator> group, std::unique_ptr<Communicator> side)
      : CommunicatorDecorator(std::move(group)), side_(std::move(side)) {}
  std::unique_ptr<Communicator> split(int color) override {
    auto made = group().split(color);
    return std::make_unique<CheckedCommunicator>(std::move(made), side_->split(color));
  }
  void abort(const std::string& reason) noexcept override {
    group().abort(reason);
    side_->abort(reason);
  }
  void set_timeout(std::chrono::milliseconds timeout) override {
    group().set_timeout(timeout);
    side_->set_timeout(timeout);
  }

 protected:
  Work post(const detail::Request& request) override {
    auto outcome = compare(request.collective());
    if (outcome.ok()) return detail::perform(group(), request);
    abort(outcome.text());
    return detail::failed_work(std::move(outcome));
  }

 private:
  Outcome compare(const Collective& collective) {
    const auto& recorder = group().recorder();
    const Fingerprint mine{recorder.sequence() + 1, detail::pack(collective), collective.bytes, recorder.label()};
    std::vector<Fingerprint> all(static_cast<std::size_t>(size()));
    side_->recorder().set_label("check of " + mine.text(), /*compared=*/false);
    if (auto outcome = side_->all_gather({&mine, sizeof mine, DType::U8}, {all.data(), all.size() * sizeof mine, DType::U8}).wait();
        !outcome.ok())
      return outcome;
    if (std::all_of(all.begin(), all.end(), [&](const auto& one) { return one == mine; })) return {};
    std::vector<int> ranks;
    std::vector<std::string> calls;
    for (const auto& one : all) {
      ranks.push_back(static_cast<int>(ranks.size()));
      calls.push_back(one.text());
    }
    return {Errc::CollectiveMismatch, "ranks disagree: " + detail::parties(ranks, calls)};
  }

  std::unique_ptr<Communicator> side_;
};

}  // namespace

std::unique_ptr<Communicator> checked_communicator(std::unique_ptr<Communicator> group, std::unique_ptr<Communicator> side) {
  if (!side) side = group->split(0);
  return std::make_unique<CheckedCommunicator>(std::move(group), std::move(side));
}

}  // namespace troupe
