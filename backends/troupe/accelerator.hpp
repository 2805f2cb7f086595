#pragma once

#include <troupe/accumulation.hpp>
#include <troupe/comm_hook.hpp>
#include <troupe/deepspeed_plugin.hpp>
#include <troupe/fsdp_plugin.hpp>
#include <troupe/memory_account.hpp>
#include <troupe/data/training_stream.hpp>
#include <troupe/data/data_loader.hpp>
#include <troupe/optimizer.hpp>
#include <troupe/profile.hpp>
#include <troupe/random.hpp>
#include <troupe/saving.hpp>
#include <troupe/scheduler.hpp>
#include <troupe/sharding_options.hpp>
#include <troupe/split.hpp>
#include <troupe/train_context.hpp>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace torch::nn {
class Module;
template <class Contained>
class ModuleHolder;
}  // namespace torch::nn

namespace troupe {

enum class Precision : std::uint8_t { No, BF16, FP16 };
/// "no", "bf16" or "fp16"; throws Failure{InvalidConfig} on anything else.
[[nodiscard]] Precision precision_from(const std::string& name);

/// Replicated training, as torch.nn.parallel.DistributedDataParallel; names and defaults as there.
struct DistributedDataParallelKwargs {
  double bucket_cap_mb = 25;
  bool find_unused_parameters = false;
  bool broadcast_buffers = true;
  CommHook comm_hook = CommHook::NO;
  CommWrapper comm_wrapper = CommWrapper::NO;
  CommStateOption comm_state_option{};
};

/// Of torch.autocast.
struct AutocastKwargs {
  bool enabled = true;                        ///< false: no autocast inside, whatever mixed_precision says
  std::optional<bool> cache_enabled = {};     ///< of cast weights; nothing: as it is
};

/// Upstream's surprises, for those who must reproduce them. All off by default.
struct Compat {
  bool step_scheduler_per_process = false;  ///< Accelerate 1.15: a prepared scheduler steps once per process at every update
};

/// What backward does at an update whose loss or gradients are not finite on some rank: on all ranks the same (docs/snapshots.md).
/// Not looked at inside LocalSGD and join_uneven_inputs.
struct BadNumbers {
  enum class Policy : std::uint8_t {
    Ignore,    ///< nothing is looked at, and nothing costs anything
    Skip,      ///< optimizers and schedulers do nothing until the next update, as after an overflow of fp16
    Halt,      ///< backward throws Failure{DataMalformed} that names the rank, the update and the batch's samples
    RollBack,  ///< the training state is `roll_back_steps` updates ago again, from a snapshot in memory; data go on with the next batch
  };
  Policy policy = Policy::Ignore;
  int roll_back_steps = 1;  ///< updates undone, or more up to the next snapshot; 1 to `snapshots().every`
  int max_in_a_row = 10;    ///< more bad updates one after another are as with Halt
};

/// Updates that BadNumbers kept from happening.
struct BadNumberCounts {
  std::int64_t skipped = 0;      ///< all of them
  std::int64_t rolled_back = 0;  ///< of these
};

struct AcceleratorOptions {
  Precision mixed_precision = Precision::No;
  int gradient_accumulation_steps = 1;
  bool sync_with_dataloader = true;  ///< the last batch of an epoch always ends its accumulation window
  DataLoaderConfiguration dataloader{};
  DistributedDataParallelKwargs ddp{};
  /// Anything but Replicate shards every prepared model. With a mixed precision and no `param_dtype`, gathered
  /// parameters and so computing are of that precision; masters, gradient sums and optimizer state stay fp32.
  ShardingOptions sharding{};
  LossScale loss_scale{};  ///< of FP16
  /// Settings of DeepSpeed or FSDP instead of the above and of mixed_precision, which must then be left alone or agree.
  /// "auto" values are settled by the first prepare() of a model, from what is prepared with it, and the effective
  /// configuration is printed. At most one of the three.
  std::optional<DeepSpeedPlugin> deepspeed_plugin{};
  std::optional<FullyShardedDataParallelPlugin> fsdp_plugin{};
  std::optional<EffectiveConfig> config{};  ///< settled already: `accelerate_options(file).config`
  std::vector<std::int64_t> hidden_sizes{};  ///< of the model, for DeepSpeed's "auto" sizes
  Compat compat{};
  /// Instead of gradient_accumulation_steps and sync_with_dataloader, which must then be left alone.
  std::optional<GradientAccumulationPlugin> gradient_accumulation_plugin{};
  CheckpointOptions checkpoint{};
  ProjectConfiguration project_config{};
  /// Unless it is Ignore, backward reads the loss, looks at all gradients before an update and adds a reduction of one byte (none with FP16); and
  /// no checkpoint of parameters or optimizer state that are not finite is committed. No snapshot is, whatever the policy.
  BadNumbers bad_numbers{};
};

/// Ends something at the end of a scope.
class [[nodiscard]] Scope {
 public:
  explicit Scope(std::function<void()> at_end) : at_end_(std::move(at_end)) {}
  Scope(Scope&& other) noexcept : at_end_(std::exchange(other.at_end_, nullptr)) {}
  Scope& operator=(Scope&&) = delete;
  ~Scope() {
    if (at_end_) at_end_();
  }

 private:
  std::function<void()> at_end_;
};

/// Hugging Face Accelerate's loop surface over one rank's communicator: names and semantics as there, but an explicit
/// object. On purpose different from Accelerate 1.15: a scheduler steps once per update, not once per process; an
/// incomplete last accumulation window is divided by its own number of batches, not by the full one.
///
/// Threads: the rank's own; the constructor sets its intra-op threads. Errors: every collective throws Failure naming
/// who did not come. What is prepared must outlive the Accelerator's last use of it.
class Accelerator {
 public:
  explicit Accelerator(TrainContext& context, AcceleratorOptions options = {});
  ~Accelerator();
  Accelerator(const Accelerator&) = delete;
  Accelerator& operator=(const Accelerator&) = delete;

  /// Any number of models (module holders or shared pointers), optimizers, loaders, data iterators and schedulers, in any order. The iterators of
  /// `context.dataset(...)` need no preparing: the Accelerator knows of them.
  template <class... Objects>
  void prepare(Objects&... objects) {
    (prepare_one(objects), ...);
    finish_prepare();
  }
  void prepare_model(std::shared_ptr<torch::nn::Module> model);
  void prepare_optimizer(Optimizer& optimizer);
  void prepare_data_loader(DataLoader& loader);
  void prepare_stream(std::shared_ptr<TrainingStream> stream);
  void prepare_scheduler(LRScheduler& scheduler);

  /// Opens one accumulation step, until the next one: gradients are reduced, and a prepared optimizer and scheduler
  /// act, only on a window's last one. Several models share the window: all prepared ones are meant, and naming some
  /// only checks that they are prepared. A backward that reaches none of a model's parameters does not concern it.
  template <class... Models>
  Scope accumulate(const Models&... models) {
    check_prepared("accumulate", {module_of(models)...});
    return accumulate();
  }
  Scope accumulate();
  /// Gradients stay local inside: those of the models named, or of all. Sharded gradients are reduced and stay sharded.
  template <class... Models>
  Scope no_sync(const Models&... models) {
    return no_sync(std::vector<const torch::nn::Module*>{module_of(models)...});
  }
  Scope no_sync(const std::vector<const torch::nn::Module*>& models = {});
  /// Inside, backward reduces a replicated model's gradients even within no_sync and before a window's end. As in
  /// Accelerate, sharded models reduce as their strategy does.
  template <class Model>
  Scope trigger_sync_in_backward(const Model& model) {
    return trigger_sync(module_of(model));
  }
  /// Autocast while alive when mixed_precision says so.
  Scope autocast();
  Scope autocast(const AutocastKwargs& kwargs);
  /// Divides by the accumulation steps, runs backward, and, on a window's last step, leaves gradients averaged over
  /// ranks. A plain `loss.backward()` leaves them local.
  void backward(const at::Tensor& loss);
  /// For losses that are means over different numbers of things, tokens say: gradients become those of
  /// Σ weight·loss / Σ weight over all batches of the window and all ranks. The ranks' weights are added before the
  /// window's last backward. One call per accumulate(), on all of a window or none of it. A loss of weight 0 must be finite.
  /// Throws Failure{InvalidArgument} on a negative weight, or when all weights of a window are 0.
  void backward(const at::Tensor& loss, double weight);
  /// Scales gradients so that their joint L2 norm is at most `max_norm`; returns the norm before, the same number on
  /// every rank and, to fp32 rounding, under every strategy. Nothing (and 0) unless `sync_gradients()`. With a plugin's
  /// gradient_clipping, backward has clipped already: then this returns the norm before that, and does nothing.
  double clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm);
  /// Limits every element of the gradients to [-clip_value, clip_value], under every strategy.
  void clip_grad_value(const std::vector<at::Tensor>& parameters, double clip_value);
  [[nodiscard]] bool sync_gradients() const noexcept;
  /// True from a `backward` whose gradients overflowed on some rank, or that BadNumbers skips, until the next one that ends a window: the
  /// optimizers' and schedulers' steps between do nothing, on all ranks.
  [[nodiscard]] bool optimizer_step_was_skipped() const noexcept;
  [[nodiscard]] const BadNumberCounts& bad_number_counts() const noexcept;
  /// What a plugin came down to; nothing without one. `auto` values are settled once a model is prepared.
  [[nodiscard]] const std::optional<EffectiveConfig>& config() const noexcept;
  /// This rank's memory by category.
  [[nodiscard]] const MemoryAccount& memory();
  /// What the ZeRO arithmetic expects of the prepared models (with AdamW), beside what was measured, as a table.
  [[nodiscard]] std::string memory_report();
  /// The loss scale that the next backward uses; 1 without fp16.
  [[nodiscard]] double loss_scale() const noexcept;

  /// Every rank's rows, stacked along dim 0 in rank order; a scalar counts as one row. Throws
  /// Failure{CollectiveMismatch} with every rank's shape when they differ.
  [[nodiscard]] at::Tensor gather(const at::Tensor& tensor);
  /// The same without the rows that were added to even out the last batch.
  [[nodiscard]] at::Tensor gather_for_metrics(const at::Tensor& tensor);
  /// A new tensor; fails like gather.
  [[nodiscard]] at::Tensor reduce(const at::Tensor& tensor, ReduceOp op = ReduceOp::Sum);
  /// `tensor` with dim `dim` filled up to the longest of all ranks. A scalar stays as it is.
  [[nodiscard]] at::Tensor pad_across_processes(const at::Tensor& tensor, std::int64_t dim = 0, double pad_index = 0,
                                                bool pad_first = false);
  [[nodiscard]] at::Tensor broadcast(const at::Tensor& tensor, int from_process = 0);
  void wait_for_everyone();
  /// This process's share of the inputs: contiguous, in rank order, the first ones one longer. apply_padding repeats
  /// the last item until all shares are as long as the longest. A tensor is cut along dim 0, as are all of a map's,
  /// which must be equally long. Throws Failure{InvalidArgument}.
  template <class T>
  [[nodiscard]] std::vector<T> split_between_processes(const std::vector<T>& inputs, bool apply_padding = false) const {
    const auto indices = split_indices(static_cast<std::int64_t>(inputs.size()), apply_padding);
    std::vector<T> share;
    share.reserve(indices.size());
    for (const auto i : indices) share.push_back(inputs[static_cast<std::size_t>(i)]);
    return share;
  }
  [[nodiscard]] at::Tensor split_between_processes(const at::Tensor& inputs, bool apply_padding = false) const;
  [[nodiscard]] std::map<std::string, at::Tensor> split_between_processes(const std::map<std::string, at::Tensor>& inputs,
                                                                          bool apply_padding = false) const;
  /// Any rank may raise a flag, which check_trigger lowers. check_trigger is collective: true on all ranks when one or
  /// more had raised it since the last check.
  void set_trigger() noexcept;
  [[nodiscard]] bool check_trigger();

  /// Lets ranks have different numbers of batches: runs `body`, the training loop, and then takes part in the
  /// reductions of those that still run theirs, with gradients of zero. Averages stay over all ranks, as with torch's
  /// Join(divide_by_initial_world_size=True). At the end everyone has the parameters, buffers, optimizer and scheduler
  /// state of the lowest rank that ran longest (torch leaves the optimizers behind). Inside, `body` may call no collective but
  /// backward's. Collective. With one process, or sharded models (with a notice), it is `body()`.
  /// @param even_batches of the prepared loaders, for the epochs that begin inside.
  void join_uneven_inputs(const std::function<void()>& body, std::optional<bool> even_batches = std::nullopt);

  /// Records what this rank's thread computes, until the Profiler goes (see there).
  [[nodiscard]] Profiler profile(ProfileKwargs kwargs = {}) const;
  /// Forgets everything prepared, and an open window, after a save under way; call it on every rank. Models keep their parameters, loaders
  /// their share.
  void free_memory();
  void clear() { free_memory(); }

  /// Runs `f` on one process only.
  template <class F>
  void on_main_process(F&& f) const {
    on_process(0, std::forward<F>(f));
  }
  template <class F>
  void on_last_process(F&& f) const {
    on_process(num_processes() - 1, std::forward<F>(f));
  }
  template <class F>
  void on_process(int process, F&& f) const {
    if (process_index() == process) std::forward<F>(f)();
  }
  /// Runs `f` on one process of every node.
  template <class F>
  void on_local_main_process(F&& f) const {
    on_local_process(0, std::forward<F>(f));
  }
  template <class F>
  void on_local_process(int process, F&& f) const {
    if (local_process_index() == process) std::forward<F>(f)();
  }

  /// The main process runs the scope first, the others after it.
  Scope main_process_first();
  /// On the main process only.
  void print(const std::string& line) const;

  [[nodiscard]] bool is_main_process() const noexcept;
  [[nodiscard]] bool is_last_process() const noexcept;
  [[nodiscard]] bool is_local_main_process() const noexcept { return local_process_index() == 0; }
  [[nodiscard]] int process_index() const noexcept;
  [[nodiscard]] int local_process_index() const noexcept;
  [[nodiscard]] int num_processes() const noexcept;
  [[nodiscard]] std::shared_ptr<torch::nn::Module> unwrap_model(std::shared_ptr<torch::nn::Module> model) const;
  /// Parameters (masters) and buffers of a prepared model, whole, by name; under sharding gathered, on rank 0 only:
  /// empty on the others. Call on every rank.
  /// @param trained_only parameters that require a gradient, and no others are gathered: adapters, not their base.
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> get_state_dict(const torch::nn::Module& model, bool trained_only = false);
  template <class M>
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> get_state_dict(const torch::nn::ModuleHolder<M>& model, bool trained_only = false) {
    return get_state_dict(*model.ptr(), trained_only);
  }

  /// Writes everything prepared, and this loop's position, as one checkpoint (docs/checkpoints.md) that any strategy and any
  /// number of ranks can load and that Hugging Face's libraries open: `directory` then holds it whole, or what it held before.
  /// Each rank writes its share. Call on every rank, at the same place of the loop: after an update and before the next batch is used; or
  /// inside an open accumulation window, whose batches the run that resumes computes again: what is saved is the state as the window began.
  /// Returns when it is committed; with CheckpointOptions::async when the state is copied: rank 0's PendingSave then ends when it
  /// is committed, the others' when their part is written.
  /// Throws on all ranks: Failure{InvalidArgument} inside a LocalSGD or join_uneven_inputs, or a window whose batches no prepared loader gave;
  /// {AlreadyExists} when `directory` holds files that are no checkpoint; {StorageUnavailable} naming the rank, unless async.
  std::shared_ptr<PendingSave> save_state(const std::filesystem::path& directory);
  /// To the next checkpoint of ProjectConfiguration::automatic_checkpoint_naming.
  std::shared_ptr<PendingSave> save_state();
  /// Copies what a checkpoint holds into memory that outlives this rank, where `context.snapshots()` says so (docs/snapshots.md).
  /// With a prepared loader this happens by itself, after an update, when the loop asks that loader for its next batch, as does
  /// `context.step_completed()` after every batch; a loop without one calls both, once after each update, on every rank.
  /// @return whether this rank's share was taken: at each `context.snapshots().every`-th update. Never throws for lack of memory:
  ///         then the log says so once, and no rank takes any more. The first snapshot is collective.
  /// Throws Failure{InvalidArgument} inside an open accumulation window, a LocalSGD or join_uneven_inputs.
  bool snapshot();
  [[nodiscard]] const SnapshotCounts& snapshot_counts() const noexcept;
  /// The inverse of save_state; what follows then equals, bit for bit, what followed the save. With another number of ranks the rest of an
  /// epoch that was under way is dealt to the ranks there are, and random generators are left as they are. Also loads the weights
  /// of a plain Hugging Face directory, when not strict, and a snapshot. Every byte of a checkpoint that is read is verified. Collective.
  /// Throws on all ranks Failure naming file and tensor; after {FileCorrupt} what is prepared is partly loaded.
  LoadReport load_state(const std::filesystem::path& directory, LoadOptions options = {});
  /// From the newest one of automatic_checkpoint_naming that is undamaged.
  LoadReport load_state(LoadOptions options = {});
  /// This rank's part of save_state in a fresh directory of the run, for `TrainContext::report` on every rank. A part that could
  /// not be written, or was skipped, is no exception but a `Checkpoint::pending` that has ended so.
  [[nodiscard]] Checkpoint checkpoint();
  /// Until no save of this rank is under way; how the last one ended.
  Outcome wait_for_saves();
  [[nodiscard]] const SaveCounts& save_counts() const noexcept;

  /// Writes a model's weights for Hugging Face's libraries into `directory`, beside other files: model.safetensors, or shards and
  /// model.safetensors.index.json; tied weights once, older weight files removed. Each rank writes its share. Collective.
  template <class M>
  void save_model(const torch::nn::ModuleHolder<M>& model, const std::filesystem::path& directory, SaveModelOptions options = {}) {
    save_model(*model.ptr(), directory, options);
  }
  void save_model(const torch::nn::Module& model, const std::filesystem::path& directory, SaveModelOptions options = {});

  /// Saves and loads objects with checkpoints, in the order of registration. They must outlive the Accelerator's use.
  /// Rank 0's are saved, and loaded by all ranks, as in Accelerate.
  template <Checkpointable... Objects>
  void register_for_checkpointing(Objects&... objects) {
    (register_one(objects, false), ...);
  }
  /// The same for an object of which every rank has its own. With another number of ranks all load rank 0's.
  template <Checkpointable Object>
  void register_for_checkpointing_per_rank(Object& object) {
    register_one(object, true);
  }
  /// Called with the prepared models and a directory whose files become part of the checkpoint, before it is written; on every rank.
  using StateHook = std::function<void(const std::vector<std::shared_ptr<torch::nn::Module>>& models, const std::filesystem::path& directory)>;
  RemovableHandle register_save_state_pre_hook(StateHook hook);
  /// Called with the checkpoint's directory before it is loaded.
  RemovableHandle register_load_state_pre_hook(StateHook hook);

 private:
  void prepare_one(Optimizer& o) { prepare_optimizer(o); }
  void prepare_one(DataLoader& l) { prepare_data_loader(l); }
  void prepare_one(LRScheduler& s) { prepare_scheduler(s); }
  template <class Iterator>
    requires requires(Iterator& i) { i.training_stream(); }
  void prepare_one(Iterator& i) { prepare_stream(i.training_stream()); }
  template <class M>
  void prepare_one(std::shared_ptr<M>& m) { prepare_model(m); }
  template <class M>
  void prepare_one(torch::nn::ModuleHolder<M>& m) { prepare_model(m.ptr()); }
  void finish_prepare();
  template <class M>
  static const torch::nn::Module* module_of(const std::shared_ptr<M>& m) { return m.get(); }
  template <class M>
  static const torch::nn::Module* module_of(const torch::nn::ModuleHolder<M>& m) { return m.ptr().get(); }
  void check_prepared(const char* call, const std::vector<const torch::nn::Module*>& models) const;
  Scope trigger_sync(const torch::nn::Module* model);
  [[nodiscard]] std::vector<std::int64_t> split_indices(std::int64_t length, bool apply_padding) const;
  struct SavedObject {
    std::function<std::string()> save;
    std::function<void(const std::string&)> load;
    bool per_rank = false;
  };
  template <class Object>
  void register_one(Object& object, bool per_rank) {
    register_object({[&object] { return std::string(std::as_const(object).state_dict()); },
                     [&object](const std::string& bytes) { object.load_state_dict(bytes); }, per_rank});
  }
  void register_object(SavedObject object);

  friend class LocalSGD;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
