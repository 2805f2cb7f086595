#include <troupe/configured.hpp>
#include <troupe/errors.hpp>
#include <troupe/lr_schedule.hpp>

namespace troupe {

std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& c, std::vector<ParamGroup> groups) {
  if (!c.lr) throw Failure{Errc::InvalidConfig, "make_optimizer: the configuration of " + c.type + " has no lr"};
  if (c.type == "AdamW") {
    return std::make_unique<AdamW>(std::move(groups), AdamWOptions{.lr = *c.lr, .beta1 = c.beta1, .beta2 = c.beta2, .eps = c.eps, .weight_decay = c.weight_decay});
  }
  if (c.type == "Adam") {
    return std::make_unique<Adam>(std::move(groups), AdamOptions{.lr = *c.lr, .beta1 = c.beta1, .beta2 = c.beta2, .eps = c.eps, .weight_decay = c.weight_decay});
  }
  if (c.type == "SGD") {
    return std::make_unique<SGD>(std::move(groups), SGDOptions{.lr = *c.lr, .momentum = c.momentum, .weight_decay = c.weight_decay, .nesterov = c.nesterov});
  }
  if (c.type == "Adagrad") {
    return std::make_unique<Adagrad>(std::move(groups), AdagradOptions{.lr = *c.lr, .lr_decay = c.lr_decay, .weight_decay = c.weight_decay, .eps = c.eps});
  }
  if (c.type == "Lion") {
    return std::make_unique<Lion>(std::move(groups), LionOptions{.lr = *c.lr, .beta1 = c.beta1, .beta2 = c.beta2, .weight_decay = c.weight_decay});
  }
  throw Failure{Errc::InvalidConfig, "make_optimizer: there is no optimizer " + c.type + "; there are AdamW, Adam, SGD, Adagrad and Lion"};
}

LRScheduler make_scheduler(Optimizer& optimizer, const LRScheduleConfig& config) {
  const double base = optimizer.base_lrs().front();
  if (!(base > 0)) throw Failure{Errc::InvalidConfig, "make_scheduler: the optimizer's first group has no learning rate to scale"};
  (void)lr_at(config, base, 0);  // an unknown type is said here
  return {optimizer, [config, base](std::int64_t update) { return lr_at(config, base, update) / base; }};
}

}  // namespace troupe
