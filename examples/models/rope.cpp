#include "rope.hpp"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "llama_kernels.hpp"

// Nodes are no stable interface of LibTorch.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "tested with LibTorch 2.11 only");

namespace troupe::detail {

namespace {

constexpr std::int64_t least_positions = 256;

/// Peng et al., arXiv 2309.00071, as transformers computes it.
std::vector<double> yarn(const std::vector<double>& plain, const RopeScaling& s, double theta, std::int64_t head_size, std::int64_t original) {
  const auto dimension_of = [&](double rotations) {  // whose angle turns so often over the original length
    return static_cast<double>(head_size) * std::log(static_cast<double>(original) / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  const double low = std::max(std::floor(dimension_of(s.beta_fast)), 0.0);
  const double high = std::min(std::ceil(dimension_of(s.beta_slow)), static_cast<double>(head_size - 1));
  auto result = plain;
  for (std::size_t i = 0; i < result.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high == low ? 0.001 : high - low), 0.0, 1.0);
    result[i] = plain[i] / s.factor * ramp + plain[i] * (1 - ramp);
  }
  return result;
}

/// Llama 3.1's.
std::vector<double> llama3(std::vector<double> frequencies, const RopeScaling& s, std::int64_t original) {
  const auto length = static_cast<double>(original);
  for (auto& f : frequencies) {
    const double wave = 2 * std::numbers::pi / f;
    if (wave > length / s.low_freq_factor) {
      f /= s.factor;
    } else if (wave >= length / s.high_freq_factor) {
      const double smooth = (length / wave - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f = (1 - smooth) * f / s.factor + smooth * f;
    }
  }
  return frequencies;
}

template <class T>
void turn(const at::Tensor& from, const at::Tensor& to, bool heads_apart, const RopeTable& rope, const at::Tensor& positions_BT, std::int64_t offset, float direction) {
  // One side is [B,T,H,K], the other [B,H,T,K]: forward splits heads, backward joins them.
  const auto& split = heads_apart ? to : from;
  const auto b = split.size(0), h = split.size(1), t = split.size(2), k = split.size(3);
  const auto* x = static_cast<const T*>(from.const_data_ptr());
  auto* y = static_cast<T*>(to.mutable_data_ptr());
  const auto* cos = static_cast<const float*>(rope.cos_PK2.const_data_ptr());
  const auto* sin = static_cast<const float*>(rope.sin_PK2.const_data_ptr());
  const auto* positions = positions_BT.defined() ? static_cast<const std::int64_t*>(positions_BT.const_data_ptr()) : nullptr;
  at::parallel_for(0, b * t, std::max<std::int64_t>(1, 16384 / (h * k)), [&](std::int64_t begin, std::int64_t end) {
    for (auto i = begin; i < end; ++i) {
      const auto row = i / t, token = i % t;
      const auto p = (positions ? positions[i] : offset + token) * (k / 2);
      for (std::int64_t head = 0; head < h; ++head) {
        const auto together = (i * h + head) * k;
        const auto apart = ((row * h + head) * t + token) * k;
        rotate_head(x + (heads_apart ? together : apart), y + (heads_apart ? apart : together), cos + p, sin + p, k / 2, direction);
      }
    }
  });
}

void turn_any(const at::Tensor& from, const at::Tensor& to, bool heads_apart, const RopeTable& rope, const at::Tensor& positions_BT, std::int64_t offset, float direction) {
  if (from.scalar_type() == at::kFloat) turn<float>(from, to, heads_apart, rope, positions_BT, offset, direction);
  else turn<Bf16>(from, to, heads_apart, rope, positions_BT, offset, direction);
}

struct RotateNode final : torch::autograd::Node {
  RopeTable rope;
  at::Tensor positions_BT;
  std::int64_t offset = 0;
  at::ScalarType type = at::kFloat;

  std::string name() const override { return "TroupeRotateHeads"; }
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (!grads[0].defined()) return {{}};
    const c10::AutoGradMode no_graph{false};
    const auto grad = grads[0].to(type).contiguous();
    const auto dx = at::empty({grad.size(0), grad.size(2), grad.size(1) * grad.size(3)}, grad.options());
    turn_any(grad, dx, false, rope, positions_BT, offset, -1);
    return {dx};
  }
};

/// The same by LibTorch's operations.
at::Tensor rotate_generally(const at::Tensor& x_BTHK, const RopeTable& rope, const at::Tensor& positions_BT, std::int64_t offset) {
  const auto t = x_BTHK.size(1), half = x_BTHK.size(3) / 2;
  const auto pick = [&](const at::Tensor& table) {
    const auto on_device = table.to(x_BTHK.device());
    return (positions_BT.defined() ? on_device.index_select(0, positions_BT.reshape({-1})).view({-1, t, half}) : on_device.narrow(0, offset, t).unsqueeze(0)).unsqueeze(1);
  };
  const auto cos = pick(rope.cos_PK2), sin = pick(rope.sin_PK2);
  const auto x_BHTK = x_BTHK.transpose(1, 2).to(at::kFloat);
  const auto a = x_BHTK.narrow(-1, 0, half), b = x_BHTK.narrow(-1, half, half);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1).to(x_BTHK.scalar_type());
}

}  // namespace

RopeTables::RopeTables(const LlamaConfig& config)
    : scaling_(config.rope_scaling), theta_(config.rope_theta), head_size_(config.head_size()), max_positions_(config.max_position_embeddings) {
  if (scaling_.rope_type == "yarn") {
    attention_factor_ = scaling_.attention_factor.value_or(scaling_.factor > 1 ? 0.1 * std::log(scaling_.factor) + 1 : 1);
  }
}

std::vector<double> RopeTables::inverse_frequencies(std::int64_t length) const {
  const auto original = scaling_.original_max_position_embeddings ? scaling_.original_max_position_embeddings : max_positions_;
  auto theta = theta_;
  if (scaling_.rope_type == "dynamic") {  // NTK-aware, by the length there is
    const auto limit = static_cast<double>(max_positions_), longest = std::max(static_cast<double>(length), limit);
    const auto d = static_cast<double>(head_size_);
    theta *= std::pow(scaling_.factor * longest / limit - (scaling_.factor - 1), d / (d - 2));
  }
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < head_size_; i += 2) {
    frequencies.push_back(1.0 / std::pow(theta, static_cast<double>(i) / static_cast<double>(head_size_)));
  }
  if (scaling_.rope_type == "linear") {
    for (auto& f : frequencies) f /= scaling_.factor;
  }
  if (scaling_.rope_type == "llama3") return llama3(std::move(frequencies), scaling_, original);
  if (scaling_.rope_type == "yarn") return yarn(frequencies, scaling_, theta, head_size_, original);
  return frequencies;
}

RopeTable RopeTables::table(std::int64_t positions, std::int64_t length) {
  const auto have = table_.cos_PK2.defined() ? table_.cos_PK2.size(0) : 0;
  const bool other_length = scaling_.rope_type == "dynamic" && std::max(length, max_positions_) != length_;
  if (positions <= have && !other_length) return table_;
  length_ = std::max(length, max_positions_);
  const auto count = std::max({positions, least_positions, std::min(2 * have, max_positions_)});
  const auto frequencies = inverse_frequencies(length_);
  const auto half = head_size_ / 2;
  const c10::AutoGradMode no_graph{false};
  const RopeTable made{at::empty({count, half}, at::kFloat), at::empty({count, half}, at::kFloat)};
  auto* cos = static_cast<float*>(made.cos_PK2.mutable_data_ptr());
  auto* sin = static_cast<float*>(made.sin_PK2.mutable_data_ptr());
  for (std::int64_t p = 0; p < count; ++p) {
    for (std::int64_t i = 0; i < half; ++i) {
      // transformers' angle is a product in fp32
      const auto angle = static_cast<double>(static_cast<float>(frequencies[static_cast<std::size_t>(i)]) * static_cast<float>(p));
      cos[p * half + i] = static_cast<float>(std::cos(angle) * attention_factor_);
      sin[p * half + i] = static_cast<float>(std::sin(angle) * attention_factor_);
    }
  }
  table_ = made;
  return table_;
}

at::Tensor rotate_heads(const at::Tensor& x_any, std::int64_t heads, const RopeTable& rope, const at::Tensor& positions_BT, std::int64_t offset) {
  const auto b = x_any.size(0), t = x_any.size(1), k = x_any.size(2) / heads;
  const bool fast = x_any.is_cpu() && (x_any.scalar_type() == at::kFloat || x_any.scalar_type() == at::kBFloat16);
  if (!fast) return rotate_generally(x_any.view({b, t, heads, k}), rope, positions_BT, offset);
  const auto x = x_any.contiguous();
  const bool graph = c10::GradMode::is_enabled() && x.requires_grad();
  const auto places = positions_BT.defined() ? positions_BT.contiguous() : positions_BT;
  auto y = [&] {
    const c10::AutoGradMode no_graph{false};
    const auto made = at::empty({b, heads, t, k}, x.options());
    turn_any(x, made, true, rope, places, offset, 1);
    return made;
  }();
  if (graph) {
    std::shared_ptr<RotateNode> node{new RotateNode, torch::autograd::deleteNode};
    node->set_next_edges(torch::autograd::collect_next_edges(x));
    node->rope = rope;
    node->positions_BT = places;
    node->offset = offset;
    node->type = x.scalar_type();
    torch::autograd::set_history(y, node);
  }
  return y;
}

}  // namespace troupe::detail
