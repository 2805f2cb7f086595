#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zero.h>

#include <set>

namespace troupe {

Optimizer::Optimizer(std::vector<ParamGroup> groups, double lr, double weight_decay) : groups_(std::move(groups)) {
  std::set<const void*> seen;
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    auto& group = groups_[g];
    if (group.lr < 0) group.lr = lr;
    if (group.weight_decay < 0) group.weight_decay = weight_decay;
    base_lrs_.push_back(group.lr);
    for (std::size_t i = 0; i < group.params.size(); ++i) {
      const auto where = "parameter " + std::to_string(i) + " of group " + std::to_string(g);
      const auto& param = group.params[i];
      if (!param.defined() || !param.is_leaf()) {
        throw Failure{Errc::InvalidArgument, "optimizer: " + where + " is not a leaf tensor: pass module->parameters()"};
      }
      if (!seen.insert(param.unsafeGetTensorImpl()).second) {
        throw Failure{Errc::InvalidArgument, "optimizer: " + where + " was given before"};
      }
      handles_.push_back(param);
    }
  }
  if (seen.empty()) throw Failure{Errc::InvalidArgument, "optimizer: no parameters were given"};
}

void Optimizer::repoint(std::vector<std::vector<at::Tensor>> pieces) {
  const auto refuse = [](const std::string& why) { throw Failure{Errc::InvalidArgument, "Optimizer::repoint: " + why}; };
  if (!state().empty()) refuse("the optimizer has state of its parameters already; prepare it before its first step or load_state");
  if (pieces.size() != groups_.size()) refuse(std::to_string(pieces.size()) + " groups of pieces for " + std::to_string(groups_.size()));
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    if (pieces[g].size() != groups_[g].params.size()) {
      refuse("group " + std::to_string(g) + " has " + std::to_string(groups_[g].params.size()) + " parameters, but " +
             std::to_string(pieces[g].size()) + " pieces were given");
    }
    for (const auto& piece : pieces[g]) {
      if (!piece.defined() || !piece.is_leaf()) refuse("a piece of group " + std::to_string(g) + " is not a leaf tensor");
    }
  }
  for (std::size_t g = 0; g < groups_.size(); ++g) groups_[g].params = std::move(pieces[g]);
}

void Optimizer::zero_grad(bool set_to_none) {
  if (!acts()) return;
  const at::NoGradGuard no_grad;
  for (auto& group : groups_) {
    for (auto& param : group.params) {
      auto& grad = param.mutable_grad();
      if (!grad.defined()) continue;
      if (set_to_none) {
        grad.reset();
      } else {
        grad.zero_();
      }
    }
  }
}

void Optimizer::set_lr(std::size_t group, double lr) { groups_.at(group).lr = lr; }

double Optimizer::lr(std::size_t group) const { return groups_.at(group).lr; }

}  // namespace troupe
