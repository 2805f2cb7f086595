#include "bucket_reduction.hpp"
#include "c10d/tensor_buffer.hpp"
#include "power_sgd.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>

#include <string>

namespace troupe::detail {

namespace {

class PlainReduction final : public BucketReduction {
 public:
  explicit PlainReduction(Communicator& communicator) : communicator_(communicator) {}
  void start(const at::Tensor& gradients) override { work_ = communicator_.all_reduce(buffer_of(gradients), ReduceOp::Mean); }
  bool poll() override { return work_.poll(); }
  void finish() override {
    work_.wait().or_throw();
    work_ = Work{};
  }

 private:
  Communicator& communicator_;
  Work work_;
};

class RoundedReduction final : public BucketReduction {
 public:
  RoundedReduction(Communicator& communicator, at::ScalarType wire) : communicator_(communicator), type_(wire) {}
  void start(const at::Tensor& gradients) override {
    const at::NoGradGuard no_grad;
    gradients_ = gradients.view({-1});
    work_ = Work{};
    if (!wire_.defined() || wire_.numel() != gradients.numel()) wire_ = communicator_tensor(communicator_, gradients.numel(), type_);
    wire_.copy_(gradients_);
    work_ = communicator_.all_reduce(buffer_of(wire_), ReduceOp::Mean);
  }
  bool poll() override { return work_.poll(); }
  void finish() override {
    const at::NoGradGuard no_grad;
    work_.wait().or_throw();
    work_ = Work{};
    gradients_.copy_(wire_);
    gradients_.reset();
  }

 private:
  Communicator& communicator_;
  at::ScalarType type_;
  at::Tensor gradients_, wire_;
  Work work_;  // last: waits while the memory lives
};

bool is_power_sgd(CommHook hook) { return hook == CommHook::POWER_SGD || hook == CommHook::BATCHED_POWER_SGD; }

/// The type on the wire; nothing: as the gradients are.
std::optional<at::ScalarType> wire_type(const DistributedDataParallelKwargs& options) {
  if (options.comm_hook == CommHook::FP16 || options.comm_wrapper == CommWrapper::FP16) return at::kHalf;
  if (options.comm_hook == CommHook::BF16 || options.comm_wrapper == CommWrapper::BF16) return at::kBFloat16;
  return std::nullopt;
}

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidConfig, "Accelerator: ddp." + text}; }

}  // namespace

std::unique_ptr<BucketReduction> make_all_reduce(Communicator& communicator, std::optional<at::ScalarType> wire) {
  if (wire) return std::make_unique<RoundedReduction>(communicator, *wire);
  return std::make_unique<PlainReduction>(communicator);
}

std::unique_ptr<BucketReduction> make_reduction(Communicator& communicator, const DistributedDataParallelKwargs& options, BucketShape shape,
                                                std::size_t index) {
  if (shape.type != at::kFloat && shape.type != at::kDouble) return make_all_reduce(communicator, std::nullopt);
  const auto wire = wire_type(options);
  if (!is_power_sgd(options.comm_hook)) return make_all_reduce(communicator, wire);
  const bool batched = options.comm_hook == CommHook::BATCHED_POWER_SGD;
  auto plan = batched ? plan_batched_power_sgd(shape, options.comm_state_option) : plan_power_sgd(shape, options.comm_state_option);
  if (plan.matrices.empty()) return make_all_reduce(communicator, wire);
  return std::make_unique<PowerSgdReduction>(communicator, std::move(plan), shape.type, wire, options.comm_state_option, index);
}

void check_comm_hook(const DistributedDataParallelKwargs& options) {
  const auto& state = options.comm_state_option;
  if (!is_power_sgd(options.comm_hook)) {
    // Accelerate drops both silently.
    if (options.comm_wrapper != CommWrapper::NO) refuse("comm_wrapper has no effect without comm_hook POWER_SGD or BATCHED_POWER_SGD");
    return;
  }
  if (state.matrix_approximation_rank < 1) {
    refuse("comm_state_option.matrix_approximation_rank = " + std::to_string(state.matrix_approximation_rank) + ", but it must be 1 or more");
  }
  if (state.start_powerSGD_iter < 0) {
    refuse("comm_state_option.start_powerSGD_iter = " + std::to_string(state.start_powerSGD_iter) + ", but it must be 0 or more");
  }
  if (!(state.min_compression_rate > 0)) {
    refuse("comm_state_option.min_compression_rate = " + std::to_string(state.min_compression_rate) + ", but it must be more than 0");
  }
  if (!(state.orthogonalization_epsilon >= 0)) {
    refuse("comm_state_option.orthogonalization_epsilon = " + std::to_string(state.orthogonalization_epsilon) + ", but it must not be negative");
  }
}

}  // namespace troupe::detail
