#pragma once

#include <troupe/data/data_loader.hpp>
#include <troupe/optimizer.hpp>
#include <troupe/random.hpp>
#include <troupe/scheduler.hpp>
#include <troupe/sharding_options.hpp>
#include <troupe/train_context.hpp>

#include <functional>
#include <memory>
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
};

/// Upstream's surprises, for those who must reproduce them. All off by default.
struct Compat {
  bool step_scheduler_per_process = false;  ///< Accelerate 1.15: a prepared scheduler steps once per process at every update
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
  Compat compat{};
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

  /// Any number of models (module holders or shared pointers), optimizers, loaders and schedulers, in any order.
  template <class... Objects>
  void prepare(Objects&... objects) {
    (prepare_one(objects), ...);
    finish_prepare();
  }
  void prepare_model(std::shared_ptr<torch::nn::Module> model);
  void prepare_optimizer(Optimizer& optimizer);
  void prepare_data_loader(DataLoader& loader);
  void prepare_scheduler(LRScheduler& scheduler);

  /// Opens one accumulation step, until the next one: gradients are reduced, and a prepared optimizer and scheduler
  /// act, only on a window's last one. Models may be named, as in Accelerate; all prepared ones are meant.
  template <class... Models>
  Scope accumulate(const Models&...) {
    return accumulate();
  }
  Scope accumulate();
  /// Gradients stay local inside.
  Scope no_sync();
  /// Autocast while alive when mixed_precision says so.
  Scope autocast();
  /// Divides by the accumulation steps, runs backward, and, on a window's last step, leaves gradients averaged over
  /// ranks. A plain `loss.backward()` leaves them local.
  void backward(const at::Tensor& loss);
  /// Scales gradients so that their joint L2 norm is at most `max_norm`; returns the norm before, the same number on
  /// every rank and, to fp32 rounding, under every strategy. Nothing (and 0) unless `sync_gradients()`.
  double clip_grad_norm(const std::vector<at::Tensor>& parameters, double max_norm);
  /// Limits every element of the gradients to [-clip_value, clip_value], under every strategy.
  void clip_grad_value(const std::vector<at::Tensor>& parameters, double clip_value);
  [[nodiscard]] bool sync_gradients() const noexcept;
  /// True from a `backward` whose gradients overflowed on some rank until the next one that ends a window: the
  /// optimizers' and schedulers' steps between do nothing, on all ranks.
  [[nodiscard]] bool optimizer_step_was_skipped() const noexcept;
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
  /// The main process runs the scope first, the others after it.
  Scope main_process_first();
  /// On the main process only.
  void print(const std::string& line) const;

  [[nodiscard]] bool is_main_process() const noexcept;
  [[nodiscard]] bool is_last_process() const noexcept;
  [[nodiscard]] int process_index() const noexcept;
  [[nodiscard]] int num_processes() const noexcept;
  [[nodiscard]] std::shared_ptr<torch::nn::Module> unwrap_model(std::shared_ptr<torch::nn::Module> model) const;
  /// Parameters (masters) and buffers of a prepared model, whole, by name; under sharding gathered, on rank 0 only:
  /// empty on the others. Call on every rank.
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> get_state_dict(const torch::nn::Module& model);
  template <class M>
  [[nodiscard]] std::vector<std::pair<std::string, at::Tensor>> get_state_dict(const torch::nn::ModuleHolder<M>& model) {
    return get_state_dict(*model.ptr());
  }

  /// Writes everything prepared: rank 0 model.safetensors, optimizer.safetensors (model_1 … for further ones) and
  /// state.json (schedulers, loaders, accumulation), every rank its random_state_<rank>.safetensors. Returns when all
  /// ranks have written. Call on every rank, between accumulation windows.
  void save_state(const std::filesystem::path& directory);
  /// The inverse; what follows then equals, bit for bit, what followed the save. With another number of ranks the
  /// random generators are left as they are. Throws Failure naming file and tensor.
  void load_state(const std::filesystem::path& directory);
  /// This rank's part of save_state in a fresh directory of the run, for `TrainContext::report` on every rank.
  /// Does not wait for other ranks.
  [[nodiscard]] Checkpoint checkpoint();

 private:
  void prepare_one(Optimizer& o) { prepare_optimizer(o); }
  void prepare_one(DataLoader& l) { prepare_data_loader(l); }
  void prepare_one(LRScheduler& s) { prepare_scheduler(s); }
  template <class M>
  void prepare_one(std::shared_ptr<M>& m) { prepare_model(m); }
  template <class M>
  void prepare_one(torch::nn::ModuleHolder<M>& m) { prepare_model(m.ptr()); }
  void finish_prepare();
  void write_state(const std::filesystem::path& directory);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe
