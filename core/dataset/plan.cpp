#include "plan.hpp"

#include <arrow/record_batch.h>
#include <arrow/type.h>
#include <arrow/util/byte_size.h>

#include "arrow_check.hpp"
#include "rng.hpp"

#include <algorithm>
#include <cstdio>
#include <thread>

namespace troupe::detail {

const std::shared_ptr<const Source>& EpochSource::first() const {
  std::call_once(once_, [this] { first_ = at_pass(0); });
  return first_;
}

std::shared_ptr<const Source> at_pass(const std::shared_ptr<const Source>& source, std::int64_t pass) {
  const auto* changing = dynamic_cast<const EpochSource*>(source.get());
  return changing ? changing->at_pass(pass) : source;
}

bool RowCounts::known() const {
  for (const auto& fragment : source_->fragments())
    if (!fragment.num_rows) return false;
  return true;
}

namespace {

std::vector<std::int64_t> count_fragments(const Source& source) {
  const auto& fragments = source.fragments();
  std::vector<std::int64_t> counts(fragments.size());
  std::vector<std::size_t> unknown;
  for (std::size_t i = 0; i < fragments.size(); ++i) {
    if (fragments[i].num_rows)
      counts[i] = *fragments[i].num_rows;
    else
      unknown.push_back(i);
  }
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    for (std::size_t i = next++; i < unknown.size(); i = next++) try {
        counts[unknown[i]] = source.count_rows(static_cast<std::int64_t>(unknown[i]));
      } catch (...) {
        const std::lock_guard lock{mutex};
        error = std::current_exception();
        next = unknown.size();
      }
  };
  const std::size_t num_threads = std::min<std::size_t>({unknown.size(), std::max(1u, std::thread::hardware_concurrency()), 8});
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  return counts;
}

}  // namespace

std::vector<std::int64_t> RowCounts::all(std::int64_t pass) const {
  const bool changes = dynamic_cast<const EpochSource*>(source_.get()) != nullptr;
  const std::int64_t key = changes ? pass : 0;
  const std::lock_guard lock{mutex_};  // a second caller wants the same counts
  const auto found = by_pass_.find(key);
  if (found != by_pass_.end()) return found->second;
  if (by_pass_.size() >= 16) by_pass_.erase(by_pass_.begin());
  return by_pass_[key] = count_fragments(*at_pass(source_, pass));
}

bool Plan::keeps_rows() const {
  return std::all_of(steps.begin(), steps.end(), [](const Step& step) { return step.keeps_rows; });
}

std::int64_t Plan::window_rows() const {
  std::int64_t rows = 0;
  for (const auto& step : steps) rows = std::max(rows, step.window_rows);
  return rows;
}

std::string Plan::fingerprint() const {
  // Paths of thousands of files as 16 digits (FNV-1a); the steps in words, so that a message can show what differs.
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const char c : source->fingerprint()) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(hash));
  std::string text = digits;
  for (const auto& op : order) text += op.repeat > 0 ? "|repeat " + std::to_string(op.repeat) : "|order " + std::to_string(op.seed);
  if (!columns.empty()) {
    text += "|columns";
    for (const auto& column : columns) text += " " + column;
  }
  for (const auto& step : steps) {
    text += "|" + step.kind;
    if (!step.options.name.empty()) text += " " + step.options.name;
    if (!step.arguments.empty()) text += " " + step.arguments;
  }
  return text;
}

namespace {

std::vector<OrderEntry> ordered(const std::vector<OrderOp>& ops, std::size_t num_ops, std::int64_t num_fragments, std::int64_t pass) {
  std::vector<OrderEntry> order;
  if (num_ops == 0) {
    for (std::int64_t i = 0; i < num_fragments; ++i) order.push_back({pass, i});
    return order;
  }
  const OrderOp& op = ops[num_ops - 1];
  if (op.repeat > 0) {
    for (std::int64_t i = 0; i < op.repeat; ++i) {
      const auto one = ordered(ops, num_ops - 1, num_fragments, pass * op.repeat + i);
      order.insert(order.end(), one.begin(), one.end());
    }
    return order;
  }
  const auto before = ordered(ops, num_ops - 1, num_fragments, pass);
  for (const auto i : permutation(static_cast<std::int64_t>(before.size()), mix(op.seed, static_cast<std::uint64_t>(pass))))
    order.push_back(before[static_cast<std::size_t>(i)]);
  return order;
}

}  // namespace

std::vector<OrderEntry> epoch_order(const Plan& plan, std::int64_t num_fragments, std::int64_t epoch) {
  return ordered(plan.order, plan.order.size(), num_fragments, epoch);
}

std::vector<std::int64_t> epoch_counts(const Plan& plan, const std::vector<OrderEntry>& order) {
  std::vector<std::int64_t> counts;
  counts.reserve(order.size());
  std::map<std::int64_t, std::vector<std::int64_t>> passes;
  for (const auto& entry : order) {
    auto found = passes.find(entry.pass);
    if (found == passes.end()) found = passes.emplace(entry.pass, plan.counts->all(entry.pass)).first;
    counts.push_back(found->second[static_cast<std::size_t>(entry.fragment)]);
  }
  return counts;
}

std::int64_t rows_per_block(const Fragment& fragment, const Plan& plan, const ExecutionOptions& options) {
  std::int64_t rows = std::max<std::int64_t>(options.block_rows, 1);
  if (fragment.num_rows.value_or(0) > 0 && fragment.num_bytes > 0)
    rows = std::clamp(options.block_bytes / std::max<std::int64_t>(fragment.num_bytes / *fragment.num_rows, 1), std::int64_t{1}, rows);
  // A window is made of whole blocks: of equal ones that together are hardly more than the window.
  if (const std::int64_t window = plan.window_rows(); window > 0) {
    const std::int64_t num_blocks = (window + rows - 1) / rows;
    rows = (window + num_blocks - 1) / num_blocks;
  }
  return rows;
}

std::int64_t num_rows(const Batches& batches) {
  std::int64_t rows = 0;
  for (const auto& batch : batches) rows += batch->num_rows();
  return rows;
}

std::int64_t num_bytes(const Batches& batches) {
  std::int64_t bytes = 0;
  for (const auto& batch : batches) {
    // Slices count what they show, not what they were cut from. Types it does not know count in full.
    const auto referenced = arrow::util::ReferencedBufferSize(*batch);
    bytes += referenced.ok() ? *referenced : arrow::util::TotalBufferSize(*batch);
  }
  return bytes;
}

Batch concatenate(const Batches& batches) {
  if (batches.size() == 1) return batches.front();
  if (batches.empty()) return nullptr;
  const auto& schema = *batches.front()->schema();
  for (const auto& batch : batches)
    if (!batch->schema()->Equals(schema, false))
      throw Failure{Errc::DataMalformed, "blocks of one data set have different columns: (" + schema.ToString() + ") and (" +
                                             batch->schema()->ToString() + "); give the step that made them a schema"};
  return check(arrow::ConcatenateRecordBatches(batches), "putting blocks together");
}

}  // namespace troupe::detail
