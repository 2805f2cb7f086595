#include "frame.hpp"
#include <troupe/wire.hpp>

namespace troupe {

using detail::WireInput;
using detail::WireOutput;

Numbered<BadRows::Policy> numbered(BadRows::Policy& policy) { return {policy, BadRows::Policy::Skip}; }
Numbered<SplitEqual> numbered(SplitEqual& equal) { return {equal, SplitEqual::Uneven}; }
Numbered<Placement> numbered(Placement& placement) { return {placement, Placement::Nodes}; }

void save(WireOutput& out, const Metrics& metrics) {
  if (metrics.size() > detail::max_elements) detail::bad("a report has more than 65536 metrics");
  out(cereal::make_size_tag(metrics.size()));
  for (const auto& entry : metrics) out(entry.name, entry.value);
}
void load(WireInput& in, Metrics& metrics) {
  const auto length = in.length();
  if (length > detail::max_elements) detail::bad("a report has more than 65536 metrics");
  std::vector<Metrics::Entry> entries;
  for (std::size_t i = 0; i < length; ++i) {
    std::string key;
    MetricValue value;
    in(key, value);
    entries.emplace_back(std::move(key), std::move(value));
  }
  metrics = Metrics::from_entries(std::move(entries));
}

template <class Archive>
void serialize(Archive& ar, ScalingConfig& m) {
  std::int64_t grow_after_ms = m.grow_after.count();
  ar(m.num_workers, m.use_gpu, numbered(m.placement), m.cpus_per_worker, m.pin_threads, m.min_workers, m.spare_workers, grow_after_ms);
  m.grow_after = std::chrono::milliseconds{grow_after_ms};
}
template <class Archive>
void serialize(Archive& ar, Progress& m) {
  ar(m.epoch, m.num_epochs, m.step, m.num_steps, m.loss, m.samples_per_s, m.data_wait);
}
template <class Archive>
void serialize(Archive& ar, HostPlan& m) {
  ar(m.ranks_on, m.address, m.key);
}
template <class Archive>
void serialize(Archive& ar, Hello& m) {
  ar(m.program, m.process, m.nonce);
}
template <class Archive>
void serialize(Archive& ar, SnapshotOptions& m) {
  auto directory = m.directory.string();
  ar(directory, m.every);
  m.directory = std::move(directory);
}
template <class Archive>
void serialize(Archive& ar, DataConfig::Options& m) {
  std::int64_t stall_deadline_ms = m.stall_deadline.count();
  ar(numbered(m.equal), m.enable_shard_locality, m.fragment_nodes, m.memory_bytes, m.num_threads, stall_deadline_ms, numbered(m.bad_rows.policy), m.bad_rows.limit);
  m.stall_deadline = std::chrono::milliseconds{stall_deadline_ms};
}
template <class Archive>
void serialize(Archive& ar, DataConfig& m) {
  ar(m.datasets_to_split, m.options, m.per_dataset);
}
template <class Archive>
void serialize(Archive& ar, RunRank& m) {
  std::int64_t barrier_timeout_ms = m.barrier_timeout.count();
  ar(m.attempt, m.rank, m.world_size, m.local_rank, m.local_world_size, m.node_rank, m.function, m.config_json,
     m.run_name, m.run_directory, m.resume_checkpoint, m.previous_world_size, m.first_report_index, m.scaling, barrier_timeout_ms,
     m.snapshots, m.chaos, m.data, m.gpu, m.hosts);
  m.barrier_timeout = std::chrono::milliseconds{barrier_timeout_ms};
}
template <class Archive>
void serialize(Archive& ar, CountForStop& m) {
  ar(m.attempt);
}
template <class Archive>
void serialize(Archive& ar, StopAfter& m) {
  ar(m.attempt, m.calls);
}
template <class Archive>
void serialize(Archive& ar, BarrierPassed& m) {
  ar(m.attempt, m.sequence, m.bytes, numbered(m.error), m.text);
}
template <class Archive>
void serialize(Archive& ar, AbortRank& m) {
  ar(m.attempt, m.reason, m.at_once);
}
template <class Archive>
void serialize(Archive& ar, RankStarted& m) {
  ar(m.attempt, m.rank, m.pid);
}
template <class Archive>
void serialize(Archive& ar, Reported& m) {
  ar(m.attempt, m.rank, m.index, m.metrics, m.checkpoint, m.num_writers, m.pending);
}
template <class Archive>
void serialize(Archive& ar, CheckpointWritten& m) {
  ar(m.attempt, m.rank, m.index, numbered(m.error), m.text);
}
template <class Archive>
void serialize(Archive& ar, Progressed& m) {
  ar(m.attempt, m.rank, m.progress);
}
template <class Archive>
void serialize(Archive& ar, BarrierReached& m) {
  ar(m.attempt, m.rank, m.sequence, m.bytes);
}
template <class Archive>
void serialize(Archive& ar, SeatOpened& m) {
  ar(m.attempt, m.rank, m.host, m.place, m.endpoint);
}
template <class Archive>
void serialize(Archive& ar, SeatsKnown& m) {
  ar(m.attempt, m.endpoints);
}
template <class Archive>
void serialize(Archive& ar, StopCounted& m) {
  ar(m.attempt, m.rank, m.calls);
}
template <class Archive>
void serialize(Archive& ar, RankDone& m) {
  ar(m.attempt, m.rank, m.calls, m.unused_config_keys);
}
template <class Archive>
void serialize(Archive& ar, RankLost& m) {
  ar(m.attempt, m.rank, m.error, m.is_reusable);
}

}  // namespace troupe

namespace troupe::detail {

std::string encode_frame(const LinkMessage& message, std::size_t limit_bytes) {
  std::string frame(frame_header_bytes, '\0');
  WireOutput out{frame};
  std::visit([&](const auto& content) { out(content); }, message);
  const auto length = frame.size() - frame_header_bytes;
  const auto type = static_cast<std::uint16_t>(message.index());
  if (length > limit_bytes) {
    bad("a " + type_name(type) + " of " + std::to_string(length) + " bytes is too long to send; at most " +
        std::to_string(limit_bytes) + " are taken");
  }
  const auto length_32 = static_cast<std::uint32_t>(length);
  std::memcpy(frame.data(), &frame_magic, 4);
  std::memcpy(frame.data() + 4, &protocol_version, 2);
  std::memcpy(frame.data() + 6, &type, 2);
  std::memcpy(frame.data() + 8, &length_32, 4);
  return frame;
}

LinkMessage decode_message(std::uint16_t type, std::string_view bytes) {
  return read_alternative<LinkMessage>(type, bytes, type_name(type));
}

}  // namespace troupe::detail
