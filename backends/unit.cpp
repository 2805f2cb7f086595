#include <troupe/errors.hpp>
#include <troupe/unit.hpp>

namespace troupe {

bool Unit::trains() const {
  // Module by module: most often the first parameter decides.
  const auto search = [](const auto& self, const torch::nn::Module& module) -> bool {
    for (const auto& parameter : module.parameters(/*recurse=*/false)) {
      if (parameter.requires_grad()) return true;
    }
    for (const auto& child : module.children()) {
      if (self(self, *child)) return true;
    }
    return false;
  };
  return search(search, *this);
}

void Unit::refuse_mode_change() const {
  throw Failure{Errc::InvalidArgument, "activation checkpointing: unit " + name() +
                                           " was switched between train() and eval() after its forward; its backward would run another function"};
}

void Unit::refuse_arguments() const {
  throw Failure{Errc::Unsupported, "activation checkpointing: unit " + name() +
                                       " takes an argument that cannot be kept until backward (it cannot be copied, or refers to what it "
                                       "does not own); switch checkpointing off for this unit"};
}

namespace {

int set_below(torch::nn::Module& module, bool on, bool offload) {
  int count = 0;
  for (const auto& child : module.children()) {
    if (auto* const unit = dynamic_cast<Unit*>(child.get())) {
      unit->set_activation_checkpointing(on, offload);
      ++count;
    } else {
      count += set_below(*child, on, offload);
    }
  }
  return count;
}

}  // namespace

int set_activation_checkpointing(torch::nn::Module& model, bool on, bool offload) {
  if (const int count = set_below(model, on, offload); count > 0) return count;
  auto* const unit = dynamic_cast<Unit*>(&model);
  if (!unit) return 0;
  unit->set_activation_checkpointing(on, offload);
  return 1;
}

}  // namespace troupe
