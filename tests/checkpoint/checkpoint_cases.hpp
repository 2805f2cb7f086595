#pragma once

#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace troupe::test {

/// A small model and its optimizer, whose every byte follows from `seed`, as `num_writers` ranks write them.
class State {
 public:
  /// @param scale multiplies the largest tensor: 1 makes about 0.5 MB.
  State(std::uint64_t seed, int num_writers, std::uint64_t scale = 1, std::uint64_t max_shard_bytes = 0)
      : seed_(seed), num_writers_(num_writers), max_shard_bytes_(max_shard_bytes) {
    model_ = {{"layer.0.weight", SafetensorsDtype::F32, {129, 64 * scale}},
              {"layer.0.bias", SafetensorsDtype::F32, {64}},
              {"embed", SafetensorsDtype::BF16, {613, 90 * scale}},
              {"scalar", SafetensorsDtype::F64, {}},
              {"empty", SafetensorsDtype::F32, {0, 3}},
              {"mask", SafetensorsDtype::U8, {1001}}};
    for (const auto& spec : model_) {
      if (spec.dtype == SafetensorsDtype::F32) optimizer_.push_back({"exp_avg." + spec.name, spec.dtype, spec.shape});
    }
    optimizer_.push_back({"step.embed", SafetensorsDtype::I64, {}});
    for (const auto& spec : model_) values_.push_back(make("model", spec));
    for (const auto& spec : optimizer_) values_.push_back(make("optimizer", spec));
  }

  [[nodiscard]] CheckpointPart part(int rank) const {
    CheckpointPart part;
    part.rank = rank;
    part.num_writers = num_writers_;
    part.attempt = 1;
    part.files = {file("model", model_, 0, rank), file("optimizer", optimizer_, model_.size(), rank)};
    part.state = train_state();
    part.rank_state = rank_state(rank);
    return part;
  }

  [[nodiscard]] TrainState train_state() const {
    TrainState state;
    state.step = static_cast<std::int64_t>(seed_ * 10);
    state.epoch = 3;
    state.world_size = num_writers_;
    state.strategy = "zero3";
    state.learning_rates = {{0.1, 1e-5}};
    state.scheduler_steps = {7};
    state.loaders = {{3, 5, 40, 42}};
    state.loss_scale = 1024;
    state.objects["mine"] = std::string("a\0b", 3);
    return state;
  }
  [[nodiscard]] RankState rank_state(int rank) const { return {"rng of " + std::to_string(rank), {{"seed", std::to_string(seed_)}}}; }

  /// Reads everything back and compares every byte; empty when it is this state.
  [[nodiscard]] std::string difference(const CheckpointReader& reader) const {
    if (reader.state() != train_state()) return "the train state differs";
    for (int rank = 0; rank < num_writers_; ++rank) {
      if (reader.rank_state(rank) != rank_state(rank)) return "the state of rank " + std::to_string(rank) + " differs";
    }
    auto differs = difference(reader, "model", model_, 0);
    return differs.empty() ? difference(reader, "optimizer", optimizer_, model_.size()) : differs;
  }

  [[nodiscard]] const std::vector<TensorSpec>& model() const { return model_; }
  [[nodiscard]] const std::string& value(std::size_t i) const { return values_[i]; }
  /// The seed of a state that was read.
  static std::uint64_t seed_of(const CheckpointReader& reader) { return static_cast<std::uint64_t>(reader.state()->step) / 10; }

 private:
  [[nodiscard]] std::string make(const std::string& stem, const TensorSpec& spec) const {
    std::uint64_t size = bits_of(spec.dtype) / 8, x = seed_ * 0x9E3779B97F4A7C15ULL + std::hash<std::string>{}(stem + spec.name);
    for (const auto n : spec.shape) size *= n;
    std::string bytes(size, '\0');
    for (auto& byte : bytes) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      byte = static_cast<char>(x >> 32);
    }
    return bytes;
  }

  /// Each tensor is cut at odd places; a rank has several ranges of one file, and no rank has all of anything large.
  [[nodiscard]] SharedTensorFile file(const std::string& stem, const std::vector<TensorSpec>& specs, std::size_t first, int rank) const {
    SharedTensorFile made{stem, specs, {{"format", "pt"}}, {}, max_shard_bytes_};
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const auto& bytes = values_[first + i];
      const auto n = static_cast<std::uint64_t>(num_writers_), r = static_cast<std::uint64_t>((rank + static_cast<int>(i)) % num_writers_);
      const auto begin = bytes.size() * r / n, end = bytes.size() * (r + 1) / n;
      made.mine.push_back({i, begin, std::as_bytes(std::span{bytes}).subspan(begin, end - begin)});
    }
    return made;
  }

  [[nodiscard]] std::string difference(const CheckpointReader& reader, const std::string& stem, const std::vector<TensorSpec>& specs,
                                       std::size_t first) const {
    std::vector<std::string> read;
    std::vector<ReadRange> ranges;
    read.reserve(specs.size());
    for (std::size_t i = 0; i < specs.size(); ++i) {
      auto& into = read.emplace_back(values_[first + i].size(), '\0');
      ranges.push_back({specs[i].name, 0, std::as_writable_bytes(std::span{into})});
    }
    if (reader.tensors(stem).size() != specs.size()) return stem + " has another number of tensors";
    reader.read(stem, ranges);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (read[i] != values_[first + i]) return "tensor " + specs[i].name + " of " + stem + " differs";
    }
    return {};
  }

  std::uint64_t seed_;
  int num_writers_;
  std::uint64_t max_shard_bytes_;
  std::vector<TensorSpec> model_, optimizer_;
  std::vector<std::string> values_;
};

template <class F>
Failure failure_of(F&& body) {
  try {
    body();
  } catch (const Failure& failure) {
    return failure;
  }
  return Failure{Errc::Ok, "nothing failed"};
}

}  // namespace troupe::test
