#pragma once

#include "background_saver.hpp"
#include "ddp.hpp"
#include "shard_engine.hpp"
#include "state_pieces.hpp"

#include <troupe/loss_scaler.hpp>

#include <troupe/accelerator.hpp>
#include <troupe/memory_snapshot.hpp>

#include <torch/nn/module.h>

#include <filesystem>
#include <memory>
#include <map>
#include <optional>
#include <set>
#include <vector>

namespace troupe {

struct Accelerator::Impl {
  struct Model {
    std::shared_ptr<torch::nn::Module> module;
    std::unique_ptr<detail::DdpEngine> engine;  // none in a world of one, when nothing is trained, or
    std::shared_ptr<detail::ShardEngine> shards = nullptr;  // when sharded
    int no_sync_depth = 0;
    int trigger_depth = 0;  // of trigger_sync_in_backward
    std::vector<std::size_t> buffer_digests{};  // when all ranks had the same
  };

  Impl(TrainContext& c, AcceleratorOptions o)
      : context(c),
        communicator(c.communicator()),
        options(std::move(o)),
        accumulation(accumulation_of(options)),
        scaler(options.mixed_precision == Precision::FP16 ? options.loss_scale : LossScale{.dynamic = false, .initial = 1}) {}

  TrainContext& context;
  Communicator& communicator;
  AcceleratorOptions options;
  GradientAccumulationPlugin accumulation;
  std::vector<Model> models;
  std::vector<Optimizer*> optimizers;
  std::vector<LRScheduler*> schedulers;
  struct Loader {
    DataLoader* loader;
    std::uint64_t shared_seed;  // of a shuffle without a seed of its own
    int id;                     // in the order of preparing
  };
  std::vector<Loader> loaders;

  // ---- streamed data sets: accelerator_streams.cpp
  struct Stream {
    std::shared_ptr<TrainingStream> stream;
    int id;  // counted with the loaders'
  };
  std::vector<Stream> streams;
  std::map<std::string, std::vector<std::string>> waiting_positions;  // every rank's, of data sets that were loaded and not opened yet
  std::vector<int> asked_order;  // loaders and streams with a batch under way, the latest last
  void adopt(std::shared_ptr<TrainingStream> stream);
  void adopt_context_streams();
  void note_asked(int id, bool more);
  /// The stream whose batch is under way, if some of its rows may be padding on some rank.
  [[nodiscard]] const TrainingStream* padded_stream() const;
  /// `all` are `rows_each` rows of every rank, of which `real_rows` of this one are real. Collective.
  [[nodiscard]] at::Tensor without_padding(const at::Tensor& all, std::int64_t rows_each, std::int64_t real_rows);
  void save_streams(std::map<std::string, std::string>& saved) const;
  void find_missing_streams(const RankState& first, LoadReport& report) const;
  void load_streams(const CheckpointReader& reader, int num_ranks);

  std::shared_ptr<StepGate> gate = std::make_shared<StepGate>();  // of the prepared optimizers
  int window_steps = 0;                                           // accumulate() calls since the last update
  double divisor = 1;                                             // of losses
  int no_sync_depth = 0;
  LossScaler scaler;  // 1 and static without fp16
  std::optional<EffectiveConfig> config;  // of a plugin
  bool config_settled = false;
  double last_norm = 0;  // before clipping by the plugin
  MemoryAccount memory;
  MemoryAccount::Charge optimizer_charge, parameters_charge, gradients_charge;  // as memory() found them
  int local_depth = 0;  // inside a LocalSGD: nothing is reduced
  struct Weights {      // of backward(loss, weight) in the open window
    double sum = 0;
    int count = 0;
  } weights;
  bool trigger = false;
  struct Turnout {  // who has a batch left, inside join_uneven_inputs
    int num_active = 0;
    int first_active = 0;
    double weight = 0;  // the active ones' together
  };
  bool joining = false;
  std::optional<Turnout> turnout;  // announced, and not used yet
  Turnout last_turnout;
  std::vector<std::shared_ptr<torch::nn::Module>> added;  // by the prepare() under way
  bool replicas_differ = false;  // there was a LocalSGD: rank 0's optimizer state and weights are what is saved
  std::set<const void*> equal;   // parameters (TensorImpls) that prepare made equal on all ranks, and training keeps so

  // ---- what is not finite: accelerator_numbers.cpp
  struct Numbers {  // of the open window
    bool bad_loss = false;
    double loss = 0;                    // the first bad one
    std::vector<std::int64_t> samples;  // of its batches
    int in_a_row = 0;                   // bad updates
    BadNumberCounts counts;
  } numbers;
  enum Found : std::uint8_t { Nothing = 0, BadGradient = 1, BadLoss = 2 };  // what weighs more is larger
  [[nodiscard]] bool looks_at_numbers() const noexcept;
  /// Reads the loss, and which samples it is of.
  void note_loss(const at::Tensor& loss);
  /// Follows the policy; all ranks call it with the same.
  void act_on(Found found);
  /// "rank 1's loss is nan; …" Collective.
  [[nodiscard]] std::string describe_bad();
  void roll_back(const std::string& why);
  /// Why these must not be saved, if so.
  [[nodiscard]] Outcome savable_numbers(const CheckpointPart& part) const;

  // ---- between steps: accelerator_boundary.cpp
  std::shared_ptr<Impl*> self = std::make_shared<Impl*>(this);  // what prepared loaders call back, while it is there
  struct Boundary {
    int next_loader = 0;
    std::set<int> asked;        // loaders that were asked for a batch since the last update, and have not ended
    std::set<int> used;         // those of them that the last window's batches may have come from
    bool window_ended = false;  // by a backward that reduced, since the last boundary
    bool batch_out = false;     // a loader has handed one out that is not counted yet
    std::int64_t updates = 0;   // of the prepared optimizers, at the last boundary
  } boundary;
  struct Snapshots {
    std::optional<SnapshotOptions> options;  // the context's, once asked for
    std::unique_ptr<SnapshotWriter> writer;  // once there was one
    std::uint64_t series = 0, number = 0;
    std::int64_t updates = 0;  // since the last one
    bool alone = false;        // older series are gone
    bool told_not_finite = false;
    SnapshotCounts counts;
  } snapshots;
  /// Where prepared loaders and the context's streams stand.
  struct DataPositions {
    std::vector<LoaderRecord> loaders;
    std::map<std::string, std::string> shared, own;  // what says more than numbers: of all ranks, and this rank's own
  };
  [[nodiscard]] DataPositions data_positions() const;
  /// What batches change and updates do not, as the open accumulation window began; a save inside the window keeps that, and who resumes
  /// computes the window's batches again. Noted when a prepared loader is asked for the window's first batch.
  struct WindowStart {
    bool is_noted = false;  // and no window has begun since
    bool holds = false;     // for the window that is open
    DataPositions positions;
    std::string rng, default_generator;
    std::map<const void*, at::Tensor> buffers;  // of prepared models, by TensorImpl
  } window_start;
  void note_window_start();
  [[nodiscard]] bool is_inside_window() const noexcept { return !gate->sync; }
  /// A buffer, as a save is to keep it.
  [[nodiscard]] at::Tensor saved_buffer(const at::Tensor& buffer) const;

  /// A prepared loader was asked for a batch.
  void asked(int loader, bool more);
  void window_ended();
  /// After an update: counts it, and takes a snapshot when one is due.
  bool pass_boundary();
  bool take_snapshot();
  /// Makes this rank's writer, or turns snapshots off on all ranks. Collective.
  void open_snapshots();
  void stop_snapshots(const std::string& why, bool tell);
  [[nodiscard]] std::int64_t num_updates() const;
  /// The state is another now: nothing is due.
  void forget_boundary();

  // ---- checkpoints: accelerator_pieces.cpp, accelerator_save.cpp, accelerator_load.cpp, accelerator_project.cpp
  std::vector<SavedObject> objects;
  std::map<int, StateHook> save_hooks, load_hooks;
  int next_hook = 0;
  SaveCounts save_counts;
  std::shared_ptr<PendingSave> last_save;
  const PendingSave* counted = nullptr;  // the last save that is in save_counts
  std::unique_ptr<detail::BackgroundSaver> saver;  // once there was an asynchronous save

  /// A part, and what its ranges point to besides prepared memory.
  struct Collected {
    CheckpointPart part;
    std::vector<at::Tensor> keep;
    std::shared_ptr<void> mapping;  // of state on disk
  };
  /// What this rank has of a model's parameters and buffers.
  [[nodiscard]] std::vector<detail::StatePiece> pieces_of(const Model& model) const;
  /// What this rank has of a parameter of an optimizer: but for name and memory, of its slots as well.
  [[nodiscard]] detail::StatePiece piece_of(const at::Tensor& handle) const;
  void leave_on_disk(detail::StatePiece& piece, const at::Tensor& handle) const;
  /// Its name in checkpoints.
  [[nodiscard]] static std::string name_in(const Optimizer& optimizer, std::size_t parameter);
  [[nodiscard]] std::vector<detail::StatePiece> pieces_of(const Optimizer& optimizer, std::shared_ptr<void>& mapping) const;
  [[nodiscard]] Collected collect() const;
  /// Updates of the parameter that had most.
  [[nodiscard]] std::int64_t train_step() const;
  [[nodiscard]] TrainState train_state() const;
  [[nodiscard]] RankState rank_state() const;
  /// Buffers that may be this rank's alone by now, as bytes.
  [[nodiscard]] std::string own_buffers(const Model& model) const;
  static void load_own_buffers(const Model& model, const std::string& bytes);
  static void note_buffers(Model& model);
  /// Throws Failure{InvalidArgument} when there is nothing whole to save now.
  void check_savable(const char* call) const;
  [[nodiscard]] bool saves_async() const;
  /// Waits for this rank's save under way, or says that this one is skipped, on all ranks alike.
  [[nodiscard]] bool skip_when_busy();
  /// On all ranks the failure of the lowest one that has one. Collective.
  void agree(const Outcome& mine);
  void call_hooks(const std::map<int, StateHook>& hooks, const std::filesystem::path& directory) const;
  void count_last_save();
  /// Ends a save on the caller's thread.
  std::shared_ptr<PendingSave> ended(const Outcome& outcome);
  /// Hands the part to the saver.
  std::shared_ptr<PendingSave> start(const CheckpointPart& part, detail::BackgroundSaver::Write write);
  std::shared_ptr<PendingSave> save(const std::filesystem::path& target, bool replace, std::function<void()> after);
  void reserve_for_saves();
  /// @param keep_loaders leaves their positions as they are.
  LoadReport load(const std::filesystem::path& directory, const LoadOptions& load_options, bool keep_loaders = false);
  void load_train_state(const TrainState& state, const RankState* own, const RankState& first, bool keep_loaders);
  /// Numbers of the checkpoints of automatic naming, ascending.
  [[nodiscard]] std::vector<std::int64_t> saved_iterations() const;
  [[nodiscard]] std::filesystem::path iteration_path(std::int64_t iteration) const;

  /// Who carries a tensor between ranks: it must reach its memory.
  [[nodiscard]] Communicator& carrier(const at::Tensor& tensor) { return tensor.is_cpu() ? communicator : context.device_communicator(); }
  /// The state of a loader whose last batch is being processed, the innermost one's; nullptr when there is none.
  [[nodiscard]] const LoaderState* ending_loader() const;
  /// Gives the loader this rank's share.
  void shard(const Loader& loader);
  /// Where a loader's state_dict() is kept among saved objects.
  static std::string loader_key(std::size_t loader) { return "loader_" + std::to_string(loader); }
  void resume_loader(std::size_t loader, const TrainState& state, const RankState* own);
  /// Takes over what a plugin says; `partial`: before anything is prepared, when "auto" values cannot be settled.
  void configure(bool partial);
  [[nodiscard]] ConfigFacts facts() const;
  double clip(const std::vector<at::Tensor>& parameters, double max_norm);
  /// Strategy and element types for a prepared model.
  [[nodiscard]] ShardingOptions sharding() const;
  /// To the plugin's norm, which `last_norm` then is.
  void clip_all();
  /// Agrees on overflow, and updates the loss scale.
  void end_window();
  [[nodiscard]] Found agree_on_overflow(Found mine);
  /// State can then be listed under parameters' names.
  void name_parameters(Optimizer& optimizer);
  /// Lets a prepared optimizer update this rank's pieces of sharded parameters.
  void repoint(Optimizer& optimizer);
  /// The engine that shards a parameter; nullptr: none does.
  [[nodiscard]] detail::ShardEngine* shards_of(const at::Tensor& parameter) const;
  [[nodiscard]] detail::ShardEngine* shards_of(const torch::nn::Module& module) const;
  /// Gradients of `parameters` that this rank has: of pieces where they are sharded.
  [[nodiscard]] std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& parameters) const;
  /// All that prepared models hold on this rank.
  [[nodiscard]] std::vector<at::Tensor> all_gradients() const;
  /// The options' plugin, or what they say without one. Throws Failure{InvalidArgument}.
  [[nodiscard]] static GradientAccumulationPlugin accumulation_of(const AcceleratorOptions& options);
  /// Empties the window: what accumulate() and backward(loss, weight) count.
  void forget_window();
  /// The model's entry. Throws Failure{InvalidArgument} when it was not prepared.
  [[nodiscard]] Model& prepared(const char* call, const torch::nn::Module* model);
  /// The engines that take part in the backward to come.
  [[nodiscard]] std::vector<detail::DdpEngine*> engines_to_reduce();
  /// How they do. Inside join_uneven_inputs a collective.
  [[nodiscard]] detail::Pass next_pass(std::size_t num_engines);
  /// All ranks' weights of the window.
  [[nodiscard]] double total_weight();
  /// A collective inside join_uneven_inputs: does this rank have a batch, of which weight?
  Turnout announce(bool active, double weight);
  /// Gives every rank the models, optimizers and schedulers of `root`.
  void copy_training_state(int root);
  /// All trained models are replicated (or there is one process).
  [[nodiscard]] bool all_replicated() const;
  /// Multiplies the gradients that prepared models hold.
  void scale_gradients(double factor);
  /// Throws Failure{CollectiveMismatch} unless `tensor` has one dtype and shape on every rank.
  void check_same_shape(const char* call, const at::Tensor& tensor);
};

}  // namespace troupe
