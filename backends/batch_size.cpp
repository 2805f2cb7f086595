#include <troupe/batch_size.hpp>
#include <troupe/errors.hpp>

#include <c10/util/Exception.h>

#include <array>
#include <new>
#include <optional>
#include <string_view>

namespace troupe {

namespace {

constexpr auto peer_text = "a rank ran out of memory: this attempt of find_executable_batch_size is over";

class EndedState final : public Work::State {
 public:
  bool poll() override { return true; }
  Outcome wait() override { return {Errc::Aborted, peer_text}; }
};

/// What all ranks agree on before each collective.
class Vote {
 public:
  explicit Vote(Communicator& everyone) : everyone_(everyone), exceptions_(std::uncaught_exceptions()) {}

  /// True when the attempt is over: this rank or another has run out. After a yes, which all get at the same
  /// collective, nobody is asked any more.
  bool ask(bool out_of_memory) {
    if (over_) return true;
    std::uint8_t out = out_of_memory;
    everyone_.all_reduce({&out, 1, DType::U8}, ReduceOp::Max).wait().or_throw();
    over_ = out != 0;
    return over_;
  }
  /// The same before a collective. One that a destructor calls while an exception leaves fn has no peers: they are elsewhere.
  bool ask() { return ask(std::uncaught_exceptions() > exceptions_); }
  [[nodiscard]] bool over() const noexcept { return over_; }

 private:
  Communicator& everyone_;
  int exceptions_;
  bool over_ = false;
};

/// Asks before each collective; when the attempt is over, they all fail. Groups split off it ask all ranks, too: every
/// rank is in one of them, and calls the same.
class GuardedCommunicator final : public Communicator {
 public:
  GuardedCommunicator(Communicator& inner, Vote& vote) : inner_(inner), vote_(vote) {}
  GuardedCommunicator(std::unique_ptr<Communicator> inner, Vote& vote) : owned_(std::move(inner)), inner_(*owned_), vote_(vote) {}

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  std::string name() const override { return inner_.name(); }
  bool reaches_any_memory() const noexcept override { return inner_.reaches_any_memory(); }
  bool widens() const noexcept override { return inner_.widens(); }
  Work all_reduce(Buffer buffer, ReduceOp op) override {
    return guarded([&] { return inner_.all_reduce(buffer, op); });
  }
  Work reduce_scatter(ConstBuffer input, Buffer output, ReduceOp op) override {
    return guarded([&] { return inner_.reduce_scatter(input, output, op); });
  }
  Work reduce_to_owners(ConstBuffer buffer, std::span<const std::size_t> begins, Buffer output, ReduceOp op) override {
    return guarded([&] { return inner_.reduce_to_owners(buffer, begins, output, op); });
  }
  FlightRecorder& recorder() noexcept override { return inner_.recorder(); }
  Work all_gather(ConstBuffer input, Buffer output) override {
    return guarded([&] { return inner_.all_gather(input, output); });
  }
  Work broadcast(Buffer buffer, int root) override {
    return guarded([&] { return inner_.broadcast(buffer, root); });
  }
  Work barrier() override {
    return guarded([&] { return inner_.barrier(); });
  }
  std::unique_ptr<Communicator> split(int color) override {
    if (vote_.ask()) throw Failure{Errc::Aborted, peer_text};
    return std::make_unique<GuardedCommunicator>(inner_.split(color), vote_);
  }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  void set_timeout(std::chrono::milliseconds timeout) override { inner_.set_timeout(timeout); }

 private:
  template <class Call>
  Work guarded(Call&& call) {
    return vote_.ask() ? Work{std::make_shared<EndedState>()} : call();
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  Vote& vote_;
};

/// The rank's context with the guarded communicator.
class AttemptContext final : public TrainContext {
 public:
  AttemptContext(TrainContext& inner, Vote& vote) : inner_(inner), vote_(vote), guard_(inner.communicator(), vote) {
    if (&inner.device_communicator() != &inner.communicator()) device_guard_.emplace(inner.device_communicator(), vote);
  }
  int world_rank() const noexcept override { return inner_.world_rank(); }
  int world_size() const noexcept override { return inner_.world_size(); }
  int local_rank() const noexcept override { return inner_.local_rank(); }
  int local_world_size() const noexcept override { return inner_.local_world_size(); }
  int node_rank() const noexcept override { return inner_.node_rank(); }
  std::uint64_t attempt() const noexcept override { return inner_.attempt(); }
  Device device() const noexcept override { return inner_.device(); }
  const ScalingConfig& scaling() const noexcept override { return inner_.scaling(); }
  std::string run_name() const override { return inner_.run_name(); }
  void report(const Metrics& metrics, const std::optional<Checkpoint>& checkpoint) override { inner_.report(metrics, checkpoint); }
  void progress(const Progress& progress) override { inner_.progress(progress); }
  std::filesystem::path checkpoint_dir() override { return inner_.checkpoint_dir(); }
  std::filesystem::path shared_checkpoint_dir() override { return inner_.shared_checkpoint_dir(); }
  std::optional<Checkpoint> get_checkpoint() const override { return inner_.get_checkpoint(); }
  void barrier() override {
    ask();
    inner_.barrier();
  }
  std::string broadcast_from_rank_zero(std::string bytes) override {
    ask();
    return inner_.broadcast_from_rank_zero(std::move(bytes));
  }
  bool should_stop() const noexcept override { return inner_.should_stop(); }
  Communicator& communicator() override { return guard_; }
  DeviceRuntime& device_runtime() override { return inner_.device_runtime(); }
  Communicator& device_communicator() override { return device_guard_ ? *device_guard_ : guard_; }

 private:
  void ask() {
    if (vote_.ask()) throw Failure{Errc::Aborted, peer_text};
  }
  TrainContext& inner_;
  Vote& vote_;
  GuardedCommunicator guard_;
  std::optional<GuardedCommunicator> device_guard_;
};

/// True when no rank ran out of memory.
bool attempt_succeeds(TrainContext& context, const std::function<void(TrainContext&, int)>& fn, int batch_size) {
  Vote vote{context.communicator()};
  AttemptContext attempt{context, vote};
  bool out_of_memory = false;
  try {
    fn(attempt, batch_size);
  } catch (const std::exception& error) {
    out_of_memory = is_out_of_memory(error);
    // Whatever a peer's end led to is no error of this rank's.
    if (!out_of_memory && !vote.over()) throw;
  }
  return !vote.ask(out_of_memory);
}

/// The smallest of what the ranks would try next.
int next_size(TrainContext& context, const BatchSizeSearch& search, int batch_size) {
  std::int64_t next = search.reduce_fn ? search.reduce_fn(batch_size) : static_cast<std::int64_t>(batch_size) * 9 / 10;
  context.communicator().all_reduce({&next, sizeof next, DType::I64}, ReduceOp::Min).wait().or_throw();
  if (next >= batch_size) {
    throw Failure{Errc::InvalidArgument, "find_executable_batch_size: reduce_fn(" + std::to_string(batch_size) + ") = " + std::to_string(next) +
                                             ", but it must be smaller"};
  }
  return static_cast<int>(next);
}

}  // namespace

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) || dynamic_cast<const c10::OutOfMemoryError*>(&error)) return true;
  constexpr std::array<std::string_view, 5> words{"out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory",
                                                  "CUDNN_STATUS_NOT_SUPPORTED."};
  const std::string_view text = error.what();
  for (const auto word : words) {
    if (text.find(word) != std::string_view::npos) return true;
  }
  return false;
}

int find_executable_batch_size(TrainContext& context, const std::function<void(TrainContext&, int)>& fn, const BatchSizeSearch& search) {
  int batch_size = search.starting_batch_size;
  while (batch_size > 0) {
    if (attempt_succeeds(context, fn, batch_size)) return batch_size;
    batch_size = next_size(context, search, batch_size);
  }
  throw Failure{Errc::InvalidArgument, "find_executable_batch_size: no batch size from " + std::to_string(search.starting_batch_size) +
                                           " down to 1 fits into memory"};
}

}  // namespace troupe
