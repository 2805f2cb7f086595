#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <troupe/errors.hpp>
#include <troupe/pair_dataset.hpp>

namespace troupe {
namespace {

at::Tensor to_tensor(const std::vector<std::int64_t>& values) {
  auto out = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
  std::ranges::copy(values, out.mutable_data_ptr<std::int64_t>());
  return out;
}

TensorDict to_sample(const WordPiece::Encoding& encoding) {
  return {{"input_ids", to_tensor(encoding.ids)}, {"token_type_ids", to_tensor(encoding.type_ids)}};
}

class EncodedPairs final : public MapDataset {
 public:
  explicit EncodedPairs(std::vector<TensorDict> samples) : samples_(std::move(samples)) {}
  [[nodiscard]] std::size_t size() const override { return samples_.size(); }
  [[nodiscard]] TensorDict get(std::size_t index) const override { return samples_.at(index); }

 private:
  std::vector<TensorDict> samples_;
};

Batch collate(const std::vector<TensorDict>& samples, std::int64_t pad_id, std::int64_t length) {
  const auto b = static_cast<std::int64_t>(samples.size());
  std::int64_t longest = 0;
  for (const auto& sample : samples) longest = std::max(longest, sample["input_ids"].size(0));
  const auto t = length == 0 ? longest : length;
  if (longest > t) {
    throw Failure{Errc::InvalidArgument, "a sample has " + std::to_string(longest) +
                                             " tokens, batches are to have " + std::to_string(t)};
  }
  const auto ids_BT = at::full({b, t}, pad_id, at::kLong);
  const auto types_BT = at::zeros({b, t}, at::kLong);
  const auto mask_BT = at::zeros({b, t}, at::kLong);
  Batch out{{"input_ids", ids_BT}, {"attention_mask", mask_BT}, {"token_type_ids", types_BT}};
  const bool labelled = !samples.empty() && samples.front().find("labels") != nullptr;
  const auto labels_B = at::empty({labelled ? b : 0}, at::kLong);
  for (std::int64_t i = 0; i < b; ++i) {
    const auto& sample = samples[static_cast<std::size_t>(i)];
    const auto& ids = sample["input_ids"];
    const auto copy = [&](const at::Tensor& from, const at::Tensor& to) {
      std::copy_n(from.const_data_ptr<std::int64_t>(), from.numel(),
                  to.mutable_data_ptr<std::int64_t>() + i * t);
    };
    copy(ids, ids_BT);
    copy(sample["token_type_ids"], types_BT);
    std::fill_n(mask_BT.mutable_data_ptr<std::int64_t>() + i * t, ids.numel(), 1);
    if (labelled)
      labels_B.mutable_data_ptr<std::int64_t>()[i] =
          *sample["labels"].const_data_ptr<std::int64_t>();
  }
  if (labelled) out.set("labels", labels_B);
  return out;
}

}  // namespace

std::shared_ptr<const MapDataset> encode(const WordPiece& tokenizer,
                                         const std::vector<SentencePair>& pairs,
                                         std::size_t max_length) {
  std::vector<TensorDict> samples;
  samples.reserve(pairs.size());
  for (const auto& pair : pairs) {
    auto sample = to_sample(tokenizer.encode(pair.first, pair.second, max_length));
    sample.set("labels", at::scalar_tensor(pair.label, at::kLong));
    samples.push_back(std::move(sample));
  }
  return std::make_shared<EncodedPairs>(std::move(samples));
}

Collate collate_pairs(std::int64_t pad_id, std::int64_t length) {
  return [pad_id, length](std::vector<TensorDict> samples) {
    return collate(samples, pad_id, length);
  };
}

Batch encode_pairs(const WordPiece& tokenizer,
                   const std::vector<std::pair<std::string, std::string>>& pairs,
                   std::size_t max_length) {
  std::vector<TensorDict> samples;
  for (const auto& [first, second] : pairs)
    samples.push_back(to_sample(tokenizer.encode(first, second, max_length)));
  return collate(samples, tokenizer.pad_id(), 0);
}

}  // namespace troupe
