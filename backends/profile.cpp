#include <troupe/errors.hpp>
#include <troupe/profile.hpp>

#include <ATen/core/ivalue.h>
#include <ATen/record_function.h>
#include <c10/core/ScalarType.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace troupe {

namespace {

using Clock = std::chrono::steady_clock;

struct TraceEvent {
  std::string name;
  at::RecordScope scope = at::RecordScope::FUNCTION;
  std::int64_t sequence = -1;  // joins a backward function to its forward operator
  Clock::time_point begin{}, end{};
  std::string shapes{};
};

double microseconds(Clock::duration t) { return std::chrono::duration<double, std::micro>(t).count(); }

const char* category(at::RecordScope scope) {
  switch (scope) {
    case at::RecordScope::BACKWARD_FUNCTION: return "backward";
    case at::RecordScope::USER_SCOPE: return "user_annotation";
    default: return "cpu_op";
  }
}

/// Tensors' sizes as "[2, 3] [3]".
std::string shapes_of(const at::RecordFunction& function) {
  std::string text;
  for (const auto& input : function.inputs()) {
    if (!input.isTensor() || !input.toTensor().defined()) continue;
    text += text.empty() ? "[" : " [";
    const auto sizes = input.toTensor().sizes();
    for (std::size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    text += "]";
  }
  return text;
}

/// The events of this thread's profiler. LibTorch's callbacks are plain functions and find it here.
thread_local std::vector<TraceEvent>* recording = nullptr;

struct OpenEvent final : at::ObserverContext {
  TraceEvent event;
};

template <bool shapes>
std::unique_ptr<at::ObserverContext> on_begin(const at::RecordFunction& function) {
  auto open = std::make_unique<OpenEvent>();
  open->event.name = function.name();
  open->event.scope = function.scope();
  open->event.sequence = function.seqNr();
  if constexpr (shapes) open->event.shapes = shapes_of(function);
  open->event.begin = Clock::now();
  return open;
}

void on_end(const at::RecordFunction&, at::ObserverContext* context) {
  const auto now = Clock::now();
  auto* open = static_cast<OpenEvent*>(context);
  if (!recording || !open) return;
  open->event.end = now;
  recording->push_back(std::move(open->event));
}

void write_event(std::ostream& out, const TraceEvent& e, int rank) {
  out << R"({"ph":"X","cat":")" << category(e.scope) << R"(","name":)" << nlohmann::json(e.name).dump() << R"(,"pid":)" << rank << R"(,"tid":)"
      << rank << R"(,"ts":)" << microseconds(e.begin.time_since_epoch()) << R"(,"dur":)" << microseconds(e.end - e.begin) << R"(,"args":{)";
  if (e.sequence >= 0) out << R"("Sequence number":)" << e.sequence;
  if (!e.shapes.empty()) out << (e.sequence >= 0 ? "," : "") << R"("Input Dims":)" << nlohmann::json(e.shapes).dump();
  out << "}}";
}

}  // namespace

struct Profiler::Impl {
  Impl(ProfileKwargs k, int r) : kwargs(std::move(k)), rank(r) {}

  ProfileKwargs kwargs;
  int rank;
  std::vector<TraceEvent> events;
  std::optional<at::CallbackHandle> handle;  // while recording
  std::int64_t step = 0;
  Clock::time_point step_begin{};
  int num_traces = 0;
  bool stopped = false;

  [[nodiscard]] ProfileAction action() const {
    return kwargs.schedule_option ? profile_action(*kwargs.schedule_option, step) : ProfileAction::Record;
  }
  void record() {
    if (handle) return;
    if (recording) throw Failure{Errc::InvalidArgument, "profile: the thread of rank " + std::to_string(rank) + " is being profiled already"};
    recording = &events;
    auto callback = kwargs.record_shapes ? at::RecordFunctionCallback(&on_begin<true>, &on_end).needsInputs(true)
                                         : at::RecordFunctionCallback(&on_begin<false>, &on_end);
    handle = at::addThreadLocalCallback(callback.scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE}));
  }
  void pause() {
    if (!handle) return;
    at::removeCallback(*handle);
    handle.reset();
    recording = nullptr;
  }
  void end_step() {
    if (!handle) return;
    events.push_back({.name = "ProfilerStep#" + std::to_string(step), .scope = at::RecordScope::USER_SCOPE, .begin = step_begin, .end = Clock::now()});
  }
  void save();
};

void Profiler::Impl::save() {
  const auto saved = std::exchange(events, {});
  if (kwargs.output_trace_dir.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(kwargs.output_trace_dir, error);
  const auto name = "profile_" + std::to_string(rank) + (num_traces ? "_" + std::to_string(num_traces) : "") + ".json";
  const auto file = kwargs.output_trace_dir / name;
  std::ofstream out{file};
  out << std::fixed;
  out.precision(3);
  out << R"({"displayTimeUnit":"ms","traceEvents":[)" << "\n"
      << R"({"ph":"M","name":"process_name","pid":)" << rank << R"(,"tid":)" << rank << R"(,"args":{"name":"rank )" << rank << R"("}})";
  for (const auto& event : saved) {
    out << ",\n";
    write_event(out, event, rank);
  }
  out << "\n]}\n";
  out.close();
  if (!out) throw Failure{Errc::StorageUnavailable, "profile: " + file.string() + " cannot be written on rank " + std::to_string(rank)};
  ++num_traces;
  if (kwargs.on_trace_ready) kwargs.on_trace_ready(file);
}

Profiler::Profiler(ProfileKwargs kwargs, int rank) : impl_(std::make_unique<Impl>(std::move(kwargs), rank)) {
  if (impl_->kwargs.schedule_option) validate(*impl_->kwargs.schedule_option);
  impl_->step_begin = Clock::now();
  if (impl_->action() != ProfileAction::Idle) impl_->record();
}

Profiler::Profiler(Profiler&&) noexcept = default;

Profiler::~Profiler() {
  try {
    stop();
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
  }
}

void Profiler::step() {
  auto& i = *impl_;
  if (i.stopped) return;
  i.end_step();
  const auto before = i.action();
  ++i.step;
  const auto now = i.action();
  if (before == ProfileAction::RecordAndSave) {
    i.pause();
    i.save();
  } else if (before == ProfileAction::Warmup && now != ProfileAction::Warmup) {
    i.events.clear();
  }
  if (now == ProfileAction::Idle) i.pause();
  else i.record();
  i.step_begin = Clock::now();
}

void Profiler::stop() {
  if (!impl_ || std::exchange(impl_->stopped, true)) return;
  auto& i = *impl_;
  const bool unsaved = i.handle && i.action() != ProfileAction::Warmup;
  i.pause();
  if (unsaved && !i.events.empty()) i.save();
}

std::size_t Profiler::num_events() const noexcept { return impl_->events.size(); }

}  // namespace troupe
