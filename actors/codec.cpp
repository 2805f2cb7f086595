#include "frame.hpp"

#include <cereal/cereal.hpp>
#include <cereal/types/map.hpp>
#include <cereal/types/optional.hpp>
#include <cereal/types/set.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/variant.hpp>

#include <cstring>
#include <exception>
#include <type_traits>

// Messages as bytes: numbers as they lie in memory (so doubles keep every bit), lengths as u32 before what they count.

namespace troupe::detail {

namespace {

constexpr std::size_t max_elements = 65'536;  // of a list

[[noreturn]] void bad(const std::string& what) { throw Failure{Errc::ProtocolError, what}; }

}  // namespace

class WireOutput : public cereal::OutputArchive<WireOutput, cereal::AllowEmptyClassElision> {
 public:
  explicit WireOutput(std::string& bytes) : OutputArchive(this), bytes_(bytes) {}
  void write(const void* data, std::size_t size) { bytes_.append(static_cast<const char*>(data), size); }

 private:
  std::string& bytes_;
};

/// Reads what is there and never more: a length is compared with the bytes that are left before anything is allocated.
class WireInput : public cereal::InputArchive<WireInput, cereal::AllowEmptyClassElision> {
 public:
  explicit WireInput(std::string_view bytes) : InputArchive(this), rest_(bytes) {}
  void read(void* data, std::size_t size) {
    if (size > rest_.size()) bad("a message was cut short");
    std::memcpy(data, rest_.data(), size);
    rest_.remove_prefix(size);
  }
  std::size_t length() {
    std::uint32_t length = 0;
    read(&length, sizeof length);
    if (length > rest_.size()) bad("a message counts more than it has bytes");
    return length;
  }
  [[nodiscard]] bool at_end() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

template <class T>
concept Number = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;

template <Number T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const T& value) {
  out.write(&value, sizeof value);
}
template <Number T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, T& value) {
  in.read(&value, sizeof value);
}
inline void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const bool& value) {
  const char byte = value ? 1 : 0;
  out.write(&byte, 1);
}
inline void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, bool& value) {
  std::uint8_t byte = 0;
  in.read(&byte, 1);
  if (byte > 1) bad("a message has a truth value that is neither 0 nor 1");
  value = byte == 1;
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::BinaryData<T>& data) {
  out.write(data.data, static_cast<std::size_t>(data.size));
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::BinaryData<T>& data) {
  in.read(data.data, static_cast<std::size_t>(data.size));
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::SizeTag<T>& tag) {
  const auto length = static_cast<std::uint32_t>(tag.size);
  out.write(&length, sizeof length);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::SizeTag<T>& tag) {
  tag.size = static_cast<std::remove_reference_t<T>>(in.length());
}
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const cereal::NameValuePair<T>& pair) {
  out(pair.value);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, cereal::NameValuePair<T>& pair) {
  in(pair.value);
}

// Lists grow as their elements arrive, so that a count alone costs no memory.
template <class T>
void CEREAL_SAVE_FUNCTION_NAME(WireOutput& out, const std::vector<T>& list) {
  if (list.size() > max_elements) bad("a list has more than 65536 elements");
  out(cereal::make_size_tag(list.size()));
  for (const auto& element : list) out(element);
}
template <class T>
void CEREAL_LOAD_FUNCTION_NAME(WireInput& in, std::vector<T>& list) {
  const auto length = in.length();
  if (length > max_elements) bad("a list has more than 65536 elements");
  list.clear();
  for (std::size_t i = 0; i < length; ++i) in(list.emplace_back());
}

}  // namespace troupe::detail

CEREAL_REGISTER_ARCHIVE(troupe::detail::WireOutput)
CEREAL_REGISTER_ARCHIVE(troupe::detail::WireInput)
CEREAL_SETUP_ARCHIVE_TRAITS(troupe::detail::WireInput, troupe::detail::WireOutput)

namespace troupe {

using detail::WireInput;
using detail::WireOutput;

/// An enumerator as its number, which must be a known one.
template <class E>
struct Numbered {
  E& value;
  E largest;
};
template <class E>
void save(WireOutput& out, const Numbered<E>& numbered) {
  out(static_cast<std::underlying_type_t<E>>(numbered.value));
}
template <class E>
void load(WireInput& in, Numbered<E>& numbered) {
  std::underlying_type_t<E> number{};
  in(number);
  if (number > static_cast<std::underlying_type_t<E>>(numbered.largest)) {
    detail::bad("a message has an enumerator of unknown number " + std::to_string(number));
  }
  numbered.value = static_cast<E>(number);
}
Numbered<Errc> numbered(Errc& code) { return {code, Errc::NetworkFailed}; }
Numbered<BadRows::Policy> numbered(BadRows::Policy& policy) { return {policy, BadRows::Policy::Skip}; }
Numbered<SplitEqual> numbered(SplitEqual& equal) { return {equal, SplitEqual::Uneven}; }
Numbered<Placement> numbered(Placement& placement) { return {placement, Placement::Processes}; }

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
void serialize(Archive& ar, RunError& m) {
  ar(numbered(m.code), m.message, m.rank, m.signal, m.exit_code, m.last_lines, m.step, m.pid, m.details);
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
     m.snapshots, m.chaos, m.data);
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

namespace {

template <std::size_t... Index>
LinkMessage make_message(std::uint16_t type, std::index_sequence<Index...>) {
  LinkMessage message;
  ((type == Index ? (void)message.emplace<Index>() : (void)0), ...);
  return message;
}

}  // namespace

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
  try {
    auto message = make_message(type, std::make_index_sequence<std::variant_size_v<LinkMessage>>{});
    WireInput in{bytes};
    std::visit([&](auto& content) { in(content); }, message);
    if (!in.at_end()) bad("it is followed by bytes that are not part of it");
    return message;
  } catch (const Failure& failure) {
    bad("the peer sent a damaged " + type_name(type) + ": " + failure.what());
  } catch (const std::exception& error) {  // cereal's
    bad("the peer sent a damaged " + type_name(type) + ": " + error.what());
  }
}

}  // namespace troupe::detail
