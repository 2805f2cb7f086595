#include "shard_plan.hpp"

#include <troupe/config.hpp>
#include <troupe/errors.hpp>
#include <troupe/unit.hpp>

#include <algorithm>
#include <map>
#include <set>

namespace troupe::detail {

namespace {

struct Candidate {
  std::string name;
  Unit* module;
};

bool holds(const std::string& unit, const std::string& name) {
  return unit.empty() || name == unit || (name.size() > unit.size() && name.starts_with(unit) && name[unit.size()] == '.');
}

/// The innermost of `units` (indices) that holds every name; -1: none does.
int innermost(const std::vector<Candidate>& units, const std::vector<std::string>& names) {
  int best = -1;
  for (std::size_t u = 0; u < units.size(); ++u) {
    const auto& unit = units[u].name;
    if (!std::all_of(names.begin(), names.end(), [&](const auto& name) { return holds(unit, name); })) continue;
    if (best < 0 || unit.size() >= units[static_cast<std::size_t>(best)].name.size()) best = static_cast<int>(u);
  }
  return best;
}

std::vector<Candidate> by_class(const torch::nn::Module& root, const std::vector<Candidate>& all, const WrapPolicy& wrap) {
  std::set<std::string> classes;
  for (const auto& module : root.modules()) classes.insert(class_name(*module));
  for (const auto& wanted : wrap.classes) {
    if (classes.contains(wanted)) continue;
    const auto near = nearest_name(wanted, {classes.begin(), classes.end()});
    throw Failure{Errc::InvalidConfig, "wrap: the model has no module of class " + wanted + (near.empty() ? "" : "; did you mean " + near + "?")};
  }
  for (const auto& item : root.named_modules()) {
    const auto name = class_name(*item.value());
    const bool wanted = std::find(wrap.classes.begin(), wrap.classes.end(), name) != wrap.classes.end();
    if (wanted && !dynamic_cast<const Unit*>(item.value().get())) {
      throw Failure{Errc::Unsupported, "wrap: " + item.key() + " is a " + name + ", which is no unit: derive " + name +
                                           "Impl from troupe::Unit and declare TROUPE_UNIT(" + name + ")"};
    }
  }
  std::vector<Candidate> chosen;
  for (const auto& candidate : all) {
    const auto name = class_name(*candidate.module);
    if (candidate.name.empty() || std::find(wrap.classes.begin(), wrap.classes.end(), name) != wrap.classes.end()) chosen.push_back(candidate);
  }
  return chosen;
}

std::vector<Candidate> by_size(const std::vector<Candidate>& all, const WrapPolicy& wrap) {
  auto inner_first = all;
  std::stable_sort(inner_first.begin(), inner_first.end(), [](const auto& a, const auto& b) { return a.name.size() > b.name.size(); });
  std::set<const void*> taken;
  std::vector<Candidate> chosen;
  for (const auto& candidate : inner_first) {
    std::int64_t count = 0;
    std::vector<const void*> mine;
    for (const auto& param : candidate.module->parameters()) {
      const void* impl = param.unsafeGetTensorImpl();
      if (taken.contains(impl)) continue;
      mine.push_back(impl);
      count += param.numel();
    }
    if (!candidate.name.empty() && count < wrap.min_num_params) continue;
    taken.insert(mine.begin(), mine.end());
    chosen.push_back(candidate);
  }
  std::reverse(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<Candidate> choose_units(torch::nn::Module& root, const WrapPolicy& wrap) {
  std::vector<Candidate> all;
  if (auto* unit = dynamic_cast<Unit*>(&root)) all.push_back({"", unit});
  for (const auto& item : root.named_modules("", /*include_self=*/false)) {
    if (auto* unit = dynamic_cast<Unit*>(item.value().get())) all.push_back({item.key(), unit});
  }
  switch (wrap.kind) {
    case WrapPolicy::Kind::Units: return all;
    case WrapPolicy::Kind::ByClass: return by_class(root, all, wrap);
    case WrapPolicy::Kind::BySize: return by_size(all, wrap);
    case WrapPolicy::Kind::NoWrap: std::erase_if(all, [](const auto& unit) { return !unit.name.empty(); }); return all;
  }
  return all;
}

/// Adds buckets of whole parameters, in the order in which backward completes them.
void add_whole_groups(ShardPlan& plan, const std::vector<std::size_t>& params, bool trained, std::int64_t bucket_elements, const std::string& label) {
  NamedTensors chosen;
  for (const auto i : params) chosen.push_back(plan.params[i]);
  const auto cap = static_cast<std::size_t>(bucket_elements) * 4;
  for (auto& bucket : plan_buckets(chosen, cap, 0)) {
    auto& group = plan.groups.emplace_back();
    group.label = label + " " + std::to_string(plan.groups.size() - 1);
    group.trained = trained;
    for (const auto i : bucket.params) group.params.push_back(params[i]);
    std::sort(group.params.begin(), group.params.end());
  }
}

}  // namespace

std::string class_name(const torch::nn::Module& module) {
  auto name = module.name();
  if (const auto colon = name.rfind("::"); colon != std::string::npos) name.erase(0, colon + 2);
  if (name.ends_with("Impl")) name.erase(name.size() - 4);
  return name;
}

ShardPlan plan_shards(torch::nn::Module& module, const ShardingOptions& options) {
  ShardPlan plan;
  const auto units = choose_units(module, options.wrap);
  std::map<const void*, std::size_t> index_of;
  std::vector<std::vector<std::string>> places;  // every name of a parameter
  for (const auto& item : module.named_parameters()) {
    const auto [found, added] = index_of.try_emplace(item.value().unsafeGetTensorImpl(), plan.params.size());
    if (added) {
      plan.params.emplace_back(item.key(), item.value());
      places.emplace_back();
    }
    places[found->second].push_back(item.key());
  }
  for (const auto& unit : units) plan.units.push_back({unit.name, unit.module, {}});

  const bool frees = options.strategy == ShardingStrategy::ShardParameters;
  std::vector<int> owner(plan.params.size());
  std::vector<std::size_t> whole, frozen;
  std::map<std::tuple<int, at::ScalarType, bool>, std::vector<std::size_t>> freed;
  for (std::size_t i = 0; i < plan.params.size(); ++i) {
    const auto& tensor = plan.params[i].second;
    owner[i] = innermost(units, places[i]);
    const bool keep = !frees || owner[i] < 0 || tensor.numel() <= options.persistence_threshold;
    if (!keep) {
      freed[{owner[i], tensor.scalar_type(), tensor.requires_grad()}].push_back(i);
    } else if (tensor.requires_grad()) {
      whole.push_back(i);
    } else if (options.param_dtype) {
      frozen.push_back(i);  // computed with in another type
    }
  }
  for (auto& [key, params] : freed) {
    auto& unit = plan.units[static_cast<std::size_t>(std::get<0>(key))];
    unit.groups.push_back(plan.groups.size());
    plan.groups.push_back({unit.name.empty() ? "root" : unit.name, std::move(params), true, std::get<2>(key)});
  }
  const auto first_whole = plan.groups.size();
  add_whole_groups(plan, whole, true, options.reduce_bucket_elements, frees ? "whole" : "bucket");
  add_whole_groups(plan, frozen, false, options.reduce_bucket_elements, "frozen");
  for (std::size_t g = first_whole; g < plan.groups.size(); ++g) {
    std::set<int> owners;
    for (const auto i : plan.groups[g].params) owners.insert(owner[i]);
    for (const auto u : owners) {
      if (u >= 0) plan.units[static_cast<std::size_t>(u)].groups.push_back(g);
    }
  }
  if (frees && units.empty()) {
    plan.notices.push_back("the model has no unit (TROUPE_UNIT), so its parameters stay whole on every rank; gradients and optimizer state are sharded");
  } else if (frees && (units.size() == 1 && units[0].name.empty())) {
    plan.notices.push_back("the whole model is one unit: all its parameters are gathered at once; make its layers units (TROUPE_UNIT) to save memory");
  } else if (frees && !units[0].name.empty()) {
    plan.notices.push_back("the model itself is no unit (TROUPE_UNIT): parameters outside of its units stay whole on every rank");
  }
  return plan;
}

}  // namespace troupe::detail
