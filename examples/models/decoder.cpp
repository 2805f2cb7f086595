#include "decoder.hpp"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "llama_kernels.hpp"

namespace troupe {

using detail::Bf16;
using detail::MatrixView;

namespace {

constexpr std::int64_t most_rows = 8;  // more are as quick through matrix products
constexpr std::int64_t grain_rows = 64;

bool readable(const at::Tensor& t) {
  return t.is_cpu() && t.is_contiguous() && t.numel() > 0 && !is_deferred(t) && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16);
}

MatrixView view_of(const at::Tensor& t) { return {t.const_data_ptr(), t.scalar_type() == at::kBFloat16, t.size(0), t.size(1)}; }

std::vector<float> floats_of(const at::Tensor& t) {
  if (!t.defined()) return {};
  const auto wide = t.detach().to(at::kFloat).contiguous();
  const auto* data = wide.const_data_ptr<float>();
  return {data, data + wide.numel()};
}

}  // namespace

bool Decoder::fits(LlamaForCausalLMImpl& model, std::int64_t batch) {
  if (batch > most_rows) return false;
  const auto parameters = model.parameters();
  return std::all_of(parameters.begin(), parameters.end(), [](const at::Tensor& p) { return readable(p); });
}

Decoder::Projection Decoder::projection(const LinearImpl& linear) {
  Projection p{view_of(linear.weight), {}, {}, floats_of(linear.bias), 0};
  if (const auto* adapter = linear.adapter(); adapter && !linear.merged()) {
    p.a = view_of(adapter->a_RI);
    p.b = view_of(adapter->b_OR);
    p.scaling = static_cast<float>(adapter->scaling);
  }
  return p;
}

Decoder::Decoder(LlamaForCausalLMImpl& model, KvCache& cache)
    : model_(model),
      cache_(cache),
      batch_(cache.batch()),
      hidden_(model.config().hidden_size),
      heads_(model.config().num_attention_heads),
      kv_heads_(model.config().kv_heads()),
      head_size_(model.config().head_size()),
      inner_(model.config().intermediate_size),
      eps_(static_cast<float>(model.config().rms_norm_eps)),
      padding_(static_cast<std::size_t>(batch_)) {
  auto& parts = model.parts();
  std::int64_t rank = 0;
  for (const auto& layer : parts.layers) {
    auto& l = layers_.emplace_back();
    const std::pair<Projection*, const Linear*> all[] = {{&l.q, &layer->q_proj},       {&l.k, &layer->k_proj},   {&l.v, &layer->v_proj},      {&l.o, &layer->o_proj},
                                                         {&l.gate, &layer->gate_proj}, {&l.up, &layer->up_proj}, {&l.down, &layer->down_proj}};
    for (const auto& [to, linear] : all) {
      *to = projection(**linear);
      rank = std::max(rank, to->a.rows);
    }
    l.input_norm = floats_of(layer->input_layernorm.weight);
    l.attention_norm = floats_of(layer->post_attention_layernorm.weight);
  }
  norm_ = floats_of(parts.norm.weight);
  words_ = view_of(parts.embed_tokens->weight_VD);
  head_ = view_of(parts.lm_head->weight_VD);
  if (cache.real().defined()) {
    const auto pads = (cache.real().size(1) - cache.real().sum(1)).contiguous();
    std::copy_n(pads.const_data_ptr<std::int64_t>(), batch_, padding_.begin());
  }
  const auto room = [&](std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(batch_ * n)); };
  x_ = room(hidden_);
  y_ = room(hidden_);
  q_ = room(heads_ * head_size_);
  attended_ = room(heads_ * head_size_);
  k_ = room(kv_heads_ * head_size_);
  v_ = room(kv_heads_ * head_size_);
  gate_ = room(inner_);
  up_ = room(inner_);
  low_ = room(3 * std::max<std::int64_t>(rank, 1));
  scales_ = room(1);
  logits_ = room(model.config().vocab_size);
}

void Decoder::normalise(const std::vector<float>& weight, const float* x, float* y) {
  detail::rms_norm_rows(x, weight.data(), y, scales_.data(), batch_, hidden_, eps_);
}

void Decoder::apply(std::span<const Projection* const> projections, std::span<float* const> outputs, const float* x) {
  std::int64_t total = 0;
  for (const auto* p : projections) total += p->weight.rows;
  at::parallel_for(0, total, grain_rows, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = 0;
    for (std::size_t i = 0; i < projections.size(); ++i) {
      const auto& w = projections[i]->weight;
      const auto from = std::clamp<std::int64_t>(begin - first, 0, w.rows), to = std::clamp<std::int64_t>(end - first, 0, w.rows);
      if (from < to) detail::multiply_rows(w, x, outputs[i], batch_, w.rows, from, to);
      first += w.rows;
    }
  });
  for (std::size_t i = 0; i < projections.size(); ++i) {
    const auto& p = *projections[i];
    const auto rows = p.weight.rows;
    for (std::int64_t m = 0; m < batch_ && !p.bias.empty(); ++m) {
      for (std::int64_t r = 0; r < rows; ++r) outputs[i][m * rows + r] += p.bias[static_cast<std::size_t>(r)];
    }
    if (p.scaling == 0) continue;
    const auto rank = p.a.rows;
    detail::multiply_rows(p.a, x, low_.data(), batch_, rank, 0, rank);
    std::vector<float> added(static_cast<std::size_t>(batch_ * rows));
    detail::multiply_rows(p.b, low_.data(), added.data(), batch_, rows, 0, rows);
    for (std::int64_t j = 0; j < batch_ * rows; ++j) outputs[i][j] += p.scaling * added[static_cast<std::size_t>(j)];
  }
}

template <class T>
void Decoder::append_and_attend(std::size_t layer) {
  auto &keys = cache_.keys_[layer], &values = cache_.values_[layer];  // [B,H,capacity,K]
  auto* const all_keys = static_cast<T*>(keys.mutable_data_ptr());
  auto* const all_values = static_cast<T*>(values.mutable_data_ptr());
  const auto* const cos = rope_.cos_PK2.const_data_ptr<float>();
  const auto* const sin = rope_.sin_PK2.const_data_ptr<float>();
  const auto k = head_size_, half = head_size_ / 2, groups = heads_ / kv_heads_, last = cache_.length();
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(k)));
  const auto one = [&](std::int64_t place) {
    const auto row = place / kv_heads_, head = place % kv_heads_;
    const auto pads = padding_[static_cast<std::size_t>(row)];
    const auto* const c = cos + (last - pads) * half;
    const auto* const s = sin + (last - pads) * half;
    std::vector<float> turned(static_cast<std::size_t>((groups + 1) * k));
    auto* const q = turned.data() + k;
    const auto* const from = q_.data() + (row * heads_ + head * groups) * k;
    for (std::int64_t g = 0; g < groups; ++g) detail::rotate_head(from + g * k, q + g * k, c, s, half, 1);
    detail::rotate_head(k_.data() + place * k, turned.data(), c, s, half, 1);
    auto* const row_keys = all_keys + place * cache_.capacity() * k;
    auto* const row_values = all_values + place * cache_.capacity() * k;
    for (std::int64_t i = 0; i < k; ++i) {
      detail::put(row_keys[last * k + i], turned[static_cast<std::size_t>(i)]);
      detail::put(row_values[last * k + i], v_[static_cast<std::size_t>(place * k + i)]);
    }
    detail::attend_tokens(q, row_keys + pads * k, row_values + pads * k, attended_.data() + (row * heads_ + head * groups) * k,
                          scores_.data() + place * groups * cache_.capacity(), groups, last + 1 - pads, k, scale);
  };
  const auto work = std::max<std::int64_t>(1, (last + 1) * k * groups);
  at::parallel_for(0, batch_ * kv_heads_, std::max<std::int64_t>(1, 16384 / work), [&](std::int64_t begin, std::int64_t end) {
    for (auto place = begin; place < end; ++place) one(place);
  });
}

std::span<float> Decoder::step(std::span<const std::int64_t> tokens) {
  if (cache_.length() + 1 > cache_.capacity()) cache_.reserve(2 * cache_.capacity());
  rope_ = model_.parts().rope.table(cache_.length() + 1, cache_.length() + 1);
  scores_.resize(static_cast<std::size_t>(batch_ * heads_ * cache_.capacity()));
  for (std::int64_t m = 0; m < batch_; ++m) {
    const auto row = tokens[static_cast<std::size_t>(m)] * hidden_;
    for (std::int64_t i = 0; i < hidden_; ++i) {
      x_[static_cast<std::size_t>(m * hidden_ + i)] = words_.is_bf16 ? detail::widen(static_cast<const Bf16*>(words_.data)[row + i])
                                                                     : static_cast<const float*>(words_.data)[row + i];
    }
  }
  const auto add = [this](std::vector<float>& to, const std::vector<float>& what) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += what[i];
  };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto& layer = layers_[i];
    normalise(layer.input_norm, x_.data(), y_.data());
    apply(std::array{&layer.q, &layer.k, &layer.v}, std::array{q_.data(), k_.data(), v_.data()}, y_.data());
    if (cache_.keys_[i].scalar_type() == at::kFloat) append_and_attend<float>(i);
    else append_and_attend<Bf16>(i);
    apply(std::array{&layer.o}, std::array{y_.data()}, attended_.data());
    add(x_, y_);
    normalise(layer.attention_norm, x_.data(), y_.data());
    apply(std::array{&layer.gate, &layer.up}, std::array{gate_.data(), up_.data()}, y_.data());
    detail::silu_times_row(gate_.data(), up_.data(), gate_.data(), batch_ * inner_);
    apply(std::array{&layer.down}, std::array{y_.data()}, gate_.data());
    add(x_, y_);
  }
  cache_.advance(1);
  normalise(norm_, x_.data(), y_.data());
  at::parallel_for(0, head_.rows, grain_rows, [&](std::int64_t begin, std::int64_t end) {
    detail::multiply_rows(head_, y_.data(), logits_.data(), batch_, head_.rows, begin, end);
  });
  return logits_;
}

}  // namespace troupe
