#include <troupe/errors.hpp>
#include <troupe/token_dataset.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

namespace troupe {

namespace {

at::Tensor to_tensor(const std::vector<std::int64_t>& values) {
  auto out = at::empty({static_cast<std::int64_t>(values.size())}, at::kLong);
  std::ranges::copy(values, out.mutable_data_ptr<std::int64_t>());
  return out;
}

std::vector<std::int64_t> to_vector(const at::Tensor& values) {
  const auto* first = values.const_data_ptr<std::int64_t>();
  return {first, first + values.numel()};
}

class Rows final : public MapDataset {
 public:
  explicit Rows(std::shared_ptr<const std::vector<TokenRow>> rows) : rows_(std::move(rows)) {}
  [[nodiscard]] std::size_t size() const override { return rows_->size(); }
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    const auto& row = rows_->at(index);
    TensorDict sample{{"input_ids", to_tensor(row.ids)}, {"labels", to_tensor(row.labels)}};
    if (!row.segment_ids.empty()) {
      sample.set("document_ids", to_tensor({row.segment_ids.begin(), row.segment_ids.end()}));
      sample.set("position_ids", to_tensor(row.position_ids));
    }
    return sample;
  }

 private:
  std::shared_ptr<const std::vector<TokenRow>> rows_;
};

TokenRow to_row(const TensorDict& sample) {
  TokenRow row{to_vector(sample["input_ids"]), to_vector(sample["labels"]), {}, {}};
  if (const auto* documents = sample.find("document_ids")) {
    const auto values = to_vector(*documents);
    row.segment_ids.assign(values.begin(), values.end());
    row.position_ids = to_vector(sample["position_ids"]);
  }
  return row;
}

class Grouped final : public MapDataset {
 public:
  Grouped(std::shared_ptr<const std::vector<TokenRow>> rows, std::int64_t batch_size, std::int64_t pad_id, std::uint64_t seed) : rows_(std::move(rows)), pad_id_(pad_id) {
    std::vector<std::size_t> lengths, order(rows_->size());
    for (const auto& row : *rows_) lengths.push_back(row.ids.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    batches_ = bucket_by_length(lengths, order, {.batch_size = static_cast<std::size_t>(batch_size), .seed = seed});
  }
  [[nodiscard]] std::size_t size() const override { return batches_.size(); }
  [[nodiscard]] TensorDict get(std::size_t index) const override {
    std::vector<TokenRow> rows;
    for (const auto i : batches_.at(index)) rows.push_back((*rows_)[i]);
    return to_batch(rows, pad_id_);
  }

 private:
  std::shared_ptr<const std::vector<TokenRow>> rows_;
  std::int64_t pad_id_;
  std::vector<std::vector<std::size_t>> batches_;
};

}  // namespace

Batch to_batch(std::span<const TokenRow> rows, std::int64_t pad_id) {
  if (rows.empty()) throw Failure{Errc::InvalidArgument, "to_batch: no rows"};
  std::size_t longest = 0, shortest = rows.front().ids.size();
  for (const auto& row : rows) {
    longest = std::max(longest, row.ids.size());
    shortest = std::min(shortest, row.ids.size());
  }
  const auto b = static_cast<std::int64_t>(rows.size()), t = static_cast<std::int64_t>(longest);
  const auto fill = [&](std::int64_t value, const auto& values_of) {
    auto out_BT = at::full({b, t}, value, at::kLong);
    for (std::int64_t i = 0; i < b; ++i) std::ranges::copy(values_of(rows[static_cast<std::size_t>(i)]), out_BT.mutable_data_ptr<std::int64_t>() + i * t);
    return out_BT;
  };
  Batch batch{{"input_ids", fill(pad_id, [](const TokenRow& row) -> const auto& { return row.ids; })},
              {"labels", fill(kIgnoredLabel, [](const TokenRow& row) -> const auto& { return row.labels; })}};
  if (longest != shortest) {
    batch.set("attention_mask", fill(0, [](const TokenRow& row) { return std::vector<std::int64_t>(row.ids.size(), 1); }));
  }
  if (!rows.front().segment_ids.empty()) {
    batch.set("document_ids", fill(0, [](const TokenRow& row) -> const auto& { return row.segment_ids; }));
    batch.set("position_ids", fill(0, [](const TokenRow& row) -> const auto& { return row.position_ids; }));
  }
  return batch;
}

std::shared_ptr<const MapDataset> row_dataset(std::shared_ptr<const std::vector<TokenRow>> rows) { return std::make_shared<Rows>(std::move(rows)); }

Collate collate_rows(std::int64_t pad_id) {
  return [pad_id](std::vector<TensorDict> samples) {
    std::vector<TokenRow> rows;
    for (const auto& sample : samples) rows.push_back(to_row(sample));
    return to_batch(rows, pad_id);
  };
}

std::shared_ptr<const MapDataset> grouped_dataset(std::shared_ptr<const std::vector<TokenRow>> rows, std::int64_t batch_size, std::int64_t pad_id, std::uint64_t seed) {
  return std::make_shared<Grouped>(std::move(rows), batch_size, pad_id, seed);
}

Batch collate_grouped(std::vector<TensorDict> samples) { return std::move(samples.at(0)); }

}  // namespace troupe
