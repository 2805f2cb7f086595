#pragma once

#include <troupe/accelerator.hpp>

#include <memory>

namespace troupe {

/// Local SGD (Stich, arXiv 1805.09767), as Accelerate's: while it lives, ranks train alone, and every
/// `local_sgd_steps` calls of step() their parameters become the average over ranks; so they do once more at the end.
/// Optimizer state and buffers stay each rank's own.
///
///     LocalSGD local_sgd{accelerator, model, 8};
///     for (…) { … optimizer.step(); optimizer.zero_grad(); local_sgd.step(); }
///
/// Every rank must make the same number of steps. With one process, or `enabled` false, it does nothing.
/// Threads: the rank's own. Errors: Failure{Unsupported} for a model that is sharded; those of the communicator.
class LocalSGD {
 public:
  /// @param model prepared by `accelerator`; a module holder or a shared pointer.
  template <class Model>
  LocalSGD(Accelerator& accelerator, const Model& model, int local_sgd_steps, bool enabled = true)
      : LocalSGD(accelerator, Accelerator::module_of(model), local_sgd_steps, enabled) {}
  LocalSGD(Accelerator& accelerator, const torch::nn::Module* model, int local_sgd_steps, bool enabled);
  /// Averages, unless an exception is on its way; a failure then is told again by the group's next collective.
  ~LocalSGD();
  LocalSGD(const LocalSGD&) = delete;
  LocalSGD& operator=(const LocalSGD&) = delete;

  /// Once per optimizer update.
  void step();

 private:
  void average();

  Accelerator& accelerator_;
  const torch::nn::Module* model_;
  int steps_;
  bool enabled_;
  int num_steps_ = 0;
  int exceptions_;
};

}  // namespace troupe
