#include "memory_counters.hpp"

#include <troupe/errors.hpp>
#include <troupe/memory_account.hpp>

#include <iomanip>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

namespace troupe {

namespace {

constexpr std::array<std::string_view, num_memory_categories> names{"parameters", "gradients",     "optimizer", "gathered",
                                                                   "buffers",    "communication", "offloaded", "activations"};

MemoryCategory category_at(std::size_t i) { return static_cast<MemoryCategory>(i); }

std::string mebibytes(std::int64_t bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << static_cast<double>(bytes) / (1 << 20);
  return text.str();
}

void line(std::ostream& out, std::string_view first, const std::string& second, const std::string& third, const std::string& fourth = {}) {
  out << std::left << std::setw(15) << first << std::right << std::setw(13) << second << std::setw(13) << third;
  if (!fourth.empty()) out << std::setw(9) << fourth;
  out << "\n";
}

}  // namespace

std::string_view name(MemoryCategory category) noexcept { return names[static_cast<std::size_t>(category)]; }

MemoryAccount::MemoryAccount() : counters_(std::make_shared<detail::MemoryCounters>()) {}

MemoryAccount::Charge::Charge(const MemoryAccount& account, MemoryCategory category, std::int64_t bytes, Source source)
    : counters_(account.counters_), category_(category), source_(source) {
  if (bytes < 0 || category == MemoryCategory::Activations) {
    throw Failure{Errc::InvalidArgument, "MemoryAccount: " + std::to_string(bytes) + " bytes of " + std::string(name(category)) +
                                             " cannot be charged; charge 0 or more bytes of another category"};
  }
  resize(bytes);
}

MemoryAccount::Charge::Charge(Charge&& other) noexcept
    : counters_(std::move(other.counters_)), bytes_(std::exchange(other.bytes_, 0)), category_(other.category_), source_(other.source_) {}

MemoryAccount::Charge& MemoryAccount::Charge::operator=(Charge&& other) noexcept {
  if (this == &other) return *this;
  resize(0);
  counters_ = std::move(other.counters_);
  bytes_ = std::exchange(other.bytes_, 0);
  category_ = other.category_;
  source_ = other.source_;
  return *this;
}

void MemoryAccount::Charge::resize(std::int64_t bytes) noexcept {
  if (!counters_) return;
  const auto more = bytes - std::exchange(bytes_, bytes);
  if (more == 0) return;
  const bool offloaded = category_ == MemoryCategory::Offloaded;
  const bool counted = source_ == Source::Counted;
  if (counted) counters_->of(MemoryCategory::Activations).add(-more);
  if (offloaded == counted) counters_->seen.add(counted ? -more : more);
  if (!offloaded) counters_->charged.add(more);
  counters_->of(category_).add(more);
}

MemoryUsage MemoryAccount::usage(MemoryCategory category) const noexcept {
  if (category == MemoryCategory::Activations && !counts_tensors()) return {};
  return counters_->of(category).usage();
}

MemoryUsage MemoryAccount::total() const noexcept { return counts_tensors() ? counters_->seen.usage() : counters_->charged.usage(); }

bool MemoryAccount::counts_tensors() const noexcept { return counters_->counts_tensors.load(std::memory_order_relaxed); }

void MemoryAccount::reset_peaks() noexcept {
  for (auto& counter : counters_->categories) counter.reset_peak();
  counters_->charged.reset_peak();
  counters_->seen.reset_peak();
}

std::string MemoryAccount::json() const {
  const auto of = [](const MemoryUsage& usage) { return nlohmann::ordered_json{{"now", usage.now}, {"peak", usage.peak}}; };
  nlohmann::ordered_json result;
  for (std::size_t i = 0; i < num_memory_categories; ++i) result[std::string(names[i])] = of(usage(category_at(i)));
  result["total"] = of(total());
  result["counts_tensors"] = counts_tensors();
  return result.dump();
}

std::string MemoryAccount::table() const {
  std::ostringstream out;
  line(out, "memory, MiB", "now", "peak");
  for (std::size_t i = 0; i < num_memory_categories; ++i) {
    const auto used = usage(category_at(i));
    if (used.peak > 0) line(out, names[i], mebibytes(used.now), mebibytes(used.peak));
  }
  line(out, "total", mebibytes(total().now), mebibytes(total().peak));
  return out.str();
}

std::string compare_memory(const MemoryBytes& estimate, const MemoryAccount& measured) {
  std::ostringstream out;
  const auto row = [&out](std::string_view what, std::int64_t expected, std::int64_t peak) {
    std::ostringstream quotient;
    quotient << std::fixed << std::setprecision(3);
    if (expected > 0) quotient << static_cast<double>(peak) / static_cast<double>(expected);
    line(out, what, mebibytes(expected), mebibytes(peak), expected > 0 ? quotient.str() : "-");
  };
  line(out, "memory, MiB", "estimate", "peak", "ratio");
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < num_memory_categories; ++i) {
    const auto category = category_at(i);
    const auto peak = measured.usage(category).peak;
    if (category != MemoryCategory::Offloaded) sum += estimate[category];
    if (estimate[category] > 0 || peak > 0) row(names[i], estimate[category], peak);
  }
  row("total", sum, measured.total().peak);
  return out.str();
}

}  // namespace troupe
