#include "llama_ops.hpp"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <troupe/errors.hpp>
#include <vector>

#include "llama_kernels.hpp"

// Nodes are no stable interface of LibTorch.
static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11, "tested with LibTorch 2.11 only");

namespace troupe::detail {

namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

/// A node that keeps tensors until backward has run.
class KeepingNode : public torch::autograd::Node {
 public:
  void keep(const std::vector<at::Tensor>& tensors) {
    for (const auto& tensor : tensors) kept_.emplace_back(tensor, /*is_output=*/false);
  }
  void release_variables() override {
    const std::scoped_lock lock{mutex_};
    kept_.clear();
  }
  variable_list apply(variable_list&& grads) final {
    if (c10::GradMode::is_enabled()) throw Failure{Errc::Unsupported, name() + ": second derivatives (create_graph) are not built"};
    const std::scoped_lock lock{mutex_};
    if (kept_.empty()) throw Failure{Errc::InvalidArgument, name() + ": backward ran a second time; the first one takes retain_graph = true"};
    std::vector<at::Tensor> tensors;
    for (const auto& saved : kept_) tensors.push_back(saved.unpack());
    return backward(grads.front(), tensors);
  }

 protected:
  /// @param grad of the only output; undefined: none. @return one gradient an input.
  virtual variable_list backward(const at::Tensor& grad, const std::vector<at::Tensor>& kept) = 0;

 private:
  std::vector<SavedVariable> kept_;
};

template <class Made>
std::shared_ptr<Made> make_node(const variable_list& inputs) {
  std::shared_ptr<Made> node{new Made, torch::autograd::deleteNode};
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  return node;
}

bool wants_gradient(const variable_list& inputs) {
  return c10::GradMode::is_enabled() && std::any_of(inputs.begin(), inputs.end(), [](const at::Tensor& t) { return t.defined() && t.requires_grad(); });
}

bool has_kernels(const at::Tensor& tensor) {
  return tensor.is_cpu() && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16);
}

/// Calls f(example of the element type) for what has kernels.
template <class F>
void by_type(const at::Tensor& tensor, F f) {
  if (tensor.scalar_type() == at::kFloat) f(float{});
  else f(Bf16{});
}

template <class T>
const T* in(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* out(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

constexpr std::int64_t grain_elements = 16384;  // worth a thread
std::int64_t grain(std::int64_t row) { return std::max<std::int64_t>(1, grain_elements / std::max<std::int64_t>(1, row)); }

// ---- RMSNorm

struct RmsNormNode final : KeepingNode {
  bool for_weight = false;
  std::string name() const override { return "TroupeRmsNorm"; }
  variable_list backward(const at::Tensor& grad, const std::vector<at::Tensor>& kept) override {
    if (!grad.defined()) return {{}, {}};
    const auto &x = kept[0], &weight = kept[1], &scales = kept[2];
    const auto dy = grad.to(x.scalar_type()).contiguous();
    const auto d = weight.numel(), rows = x.numel() / d;
    at::Tensor dx, dw;
    by_type(x, [&]<class T>(T) {
      if (should_compute_output(0)) {
        dx = at::empty_like(x);
        at::parallel_for(0, rows, grain(d), [&](std::int64_t a, std::int64_t b) {
          rms_norm_rows_backward(in<T>(x) + a * d, in<T>(weight), in<T>(dy) + a * d, in<float>(scales) + a, out<T>(dx) + a * d, b - a, d);
        });
      }
      if (should_compute_output(1)) {
        dw = at::zeros({d}, at::kFloat);  // threads take columns, so that their number does not change sums
        at::parallel_for(0, d, 64, [&](std::int64_t a, std::int64_t b) {
          rms_norm_weight_backward(in<T>(x), in<T>(dy), in<float>(scales), out<float>(dw), rows, d, a, b);
        });
        dw = dw.to(weight.scalar_type());
      }
    });
    return {dx, dw};
  }
};

// ---- SwiGLU

struct SiluTimesNode final : KeepingNode {
  std::string name() const override { return "TroupeSiluTimes"; }
  variable_list backward(const at::Tensor& grad, const std::vector<at::Tensor>& kept) override {
    if (!grad.defined()) return {{}, {}};
    const auto &gate = kept[0], &up = kept[1];
    const auto dy = grad.to(gate.scalar_type()).contiguous();
    const auto d_gate = at::empty_like(gate), d_up = at::empty_like(up);
    by_type(gate, [&]<class T>(T) {
      at::parallel_for(0, gate.numel(), grain_elements, [&](std::int64_t a, std::int64_t b) {
        silu_times_row_backward(in<T>(gate) + a, in<T>(up) + a, in<T>(dy) + a, out<T>(d_gate) + a, out<T>(d_up) + a, b - a);
      });
    });
    return {d_gate, d_up};
  }
};

// ---- LoRA

struct LoraLinearNode final : KeepingNode {
  double scaling = 1;
  std::vector<std::int64_t> sizes;  // of x
  std::string name() const override { return "TroupeLoraLinear"; }
  variable_list backward(const at::Tensor& grad, const std::vector<at::Tensor>& kept) override {
    if (!grad.defined()) return variable_list(6);
    const auto &x = kept[0], &x_a = kept[1], &weight = kept[2], &a = kept[3], &b = kept[4], &xa = kept[5];
    const auto dy = grad.reshape({-1, grad.size(-1)});
    const auto dxa = at::mm(dy, b).mul_(scaling);
    variable_list result(6);
    const auto flat = [](const at::Tensor& t) { return t.reshape({-1, t.size(-1)}); };
    if (should_compute_output(0)) result[0] = at::mm(dy, weight).view(sizes);
    if (should_compute_output(1)) result[1] = at::mm(dxa, a).view(x_a.sizes());
    if (should_compute_output(2)) result[2] = at::mm(dy.t(), flat(x));
    if (should_compute_output(3)) result[3] = dy.sum(0);
    if (should_compute_output(4)) result[4] = at::mm(dxa.t(), flat(x_a));
    if (should_compute_output(5)) result[5] = at::mm(dy.t(), xa).mul_(scaling);
    return result;
  }
};

// ---- cross-entropy

constexpr std::int64_t chunk_elements = std::int64_t{1} << 24;  // of logits at once: 64 MiB in fp32

struct CrossEntropyNode final : KeepingNode {
  at::ScalarType type = at::kFloat;
  std::int64_t count = 1;
  std::string name() const override { return "TroupeLinearCrossEntropy"; }
  variable_list backward(const at::Tensor& grad, const std::vector<at::Tensor>& kept) override {
    if (!grad.defined()) return {{}, {}};
    const auto factor = grad.to(at::kFloat) / count;  // with fp16's loss scale in it
    const auto scaled = [&](const at::Tensor& sum) { return sum.defined() ? (sum * factor).to(type) : at::Tensor{}; };
    return {scaled(kept[0]), scaled(kept[1])};
  }
};

/// Losses of some tokens; with `gradient`, their logits become those with respect to them.
void cross_entropy_rows(const at::Tensor& logits_NV, const at::Tensor& targets_N, const at::Tensor& losses_N, bool gradient) {
  if (has_kernels(logits_NV)) {
    const auto v = logits_NV.size(1);
    by_type(logits_NV, [&]<class T>(T) {
      at::parallel_for(0, logits_NV.size(0), 1, [&](std::int64_t a, std::int64_t b) {
        for (auto r = a; r < b; ++r) out<float>(losses_N)[r] = cross_entropy_row(out<T>(logits_NV) + r * v, v, in<std::int64_t>(targets_N)[r], gradient);
      });
    });
    return;
  }
  const auto wide = logits_NV.to(at::kFloat);
  const auto place_N1 = targets_N.unsqueeze(1);
  const auto total_N1 = wide.logsumexp(1, true);
  losses_N.copy_((total_N1 - wide.gather(1, place_N1)).squeeze(1));
  if (gradient) logits_NV.copy_((wide - total_N1).exp().scatter_add(1, place_N1, at::full_like(total_N1, -1)));
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x_any, const at::Tensor& weight_any, double eps) {
  const auto weight = weight_any.scalar_type() == x_any.scalar_type() ? weight_any : weight_any.to(x_any.scalar_type());
  if (!has_kernels(x_any)) {
    const auto wide = x_any.to(at::kFloat);
    return (wide * (wide.square().mean(-1, true) + eps).rsqrt() * weight.to(at::kFloat)).to(x_any.scalar_type());
  }
  const auto x = x_any.contiguous();
  const auto d = weight.numel(), rows = x.numel() / d;
  const bool graph = wants_gradient({x, weight});
  const auto node = graph ? make_node<RmsNormNode>({x, weight}) : nullptr;
  const c10::AutoGradMode no_graph{false};
  auto y = at::empty_like(x);
  const auto scales = at::empty({rows}, at::kFloat);
  by_type(x, [&]<class T>(T) {
    at::parallel_for(0, rows, grain(d), [&](std::int64_t a, std::int64_t b) {
      rms_norm_rows(in<T>(x) + a * d, in<T>(weight), out<T>(y) + a * d, out<float>(scales) + a, b - a, d, static_cast<float>(eps));
    });
  });
  if (graph) {
    node->keep({x, weight, scales});
    torch::autograd::set_history(y, node);
  }
  return y;
}

at::Tensor silu_times(const at::Tensor& gate_any, const at::Tensor& up_any) {
  if (!has_kernels(gate_any) || gate_any.scalar_type() != up_any.scalar_type()) return at::silu(gate_any) * up_any;
  const auto gate = gate_any.contiguous(), up = up_any.contiguous();
  const bool graph = wants_gradient({gate, up});
  const auto node = graph ? make_node<SiluTimesNode>({gate, up}) : nullptr;
  const c10::AutoGradMode no_graph{false};
  auto y = at::empty_like(gate);
  by_type(gate, [&]<class T>(T) {
    at::parallel_for(0, gate.numel(), grain_elements,
                     [&](std::int64_t a, std::int64_t b) { silu_times_row(in<T>(gate) + a, in<T>(up) + a, out<T>(y) + a, b - a); });
  });
  if (graph) {
    node->keep({gate, up});
    torch::autograd::set_history(y, node);
  }
  return y;
}

at::Tensor lora_linear(const at::Tensor& x_any, const at::Tensor& x_a_any, const at::Tensor& weight_any, const at::Tensor& bias_any, const at::Tensor& a_any,
                       const at::Tensor& b_any, double scaling) {
  const auto device = x_any.device().type();
  const auto type = at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : x_any.scalar_type();
  const auto as = [type](const at::Tensor& t) { return t.defined() && t.scalar_type() != type ? t.to(type) : t; };
  const auto x = as(x_any), weight = as(weight_any), bias = as(bias_any), a = as(a_any), b = as(b_any);
  const auto x_a = x_a_any.is_same(x_any) ? x : as(x_a_any);
  const bool graph = wants_gradient({x, x_a, weight, bias, a, b});
  const auto node = graph ? make_node<LoraLinearNode>({x, x_a, weight, bias, a, b}) : nullptr;
  const c10::AutoGradMode no_graph{false};
  auto y = at::linear(x, weight, bias);
  const auto xa = at::mm(x_a.reshape({-1, x_a.size(-1)}), a.t());
  y.view({-1, y.size(-1)}).addmm_(xa, b.t(), 1, scaling);
  if (graph) {
    node->keep({weight.requires_grad() ? x : at::Tensor{}, x_a, weight, a, b, xa});
    node->sizes = x.sizes().vec();
    node->scaling = scaling;
    torch::autograd::set_history(y, node);
  }
  return y;
}

at::Tensor linear_cross_entropy(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& targets_N) {
  const auto device = x_any.device().type();
  const auto type = at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : weight_any.scalar_type();
  const auto x_ND = x_any.to(type).contiguous(), weight_VD = weight_any.to(type);
  const variable_list inputs{x_ND, weight_VD};
  const bool graph = wants_gradient(inputs);
  const bool for_x = graph && x_ND.requires_grad(), for_weight = graph && weight_VD.requires_grad();
  const auto node = graph ? make_node<CrossEntropyNode>(inputs) : nullptr;
  const c10::AutoGradMode no_graph{false};
  const auto n = x_ND.size(0), d = x_ND.size(1), v = weight_VD.size(0);
  const auto losses_options = x_ND.options().dtype(at::kFloat);
  const auto chunk = std::min(n, std::clamp<std::int64_t>(chunk_elements / v, 16, 4096));
  const auto dx = for_x ? at::empty({n, d}, x_ND.options()) : at::Tensor{};
  auto dw = for_weight ? at::zeros({v, d}, losses_options) : at::Tensor{};
  const auto logits = at::empty({chunk, v}, x_ND.options());
  const auto losses = at::empty({n}, losses_options);
  const auto weight = weight_VD.detach();
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const auto rows = std::min(chunk, n - begin);
    auto part = logits.narrow(0, 0, rows);
    const auto x = x_ND.detach().narrow(0, begin, rows);
    at::mm_out(part, x, weight.t());
    cross_entropy_rows(part, targets_N.narrow(0, begin, rows), losses.narrow(0, begin, rows), graph);
    if (for_x) {
      auto to = dx.narrow(0, begin, rows);
      at::mm_out(to, part, weight);
    }
    if (for_weight) {
      if (type == at::kFloat) dw.addmm_(part.t(), x);
      else dw.add_(at::mm(part.t(), x));
    }
  }
  auto loss = losses.sum(at::kDouble).div_(n).to(at::kFloat);
  if (graph) {
    node->keep({dx, dw});
    node->type = type;
    node->count = n;
    torch::autograd::set_history(loss, node);
  }
  return loss;
}

}  // namespace troupe::detail
