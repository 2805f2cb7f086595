#pragma once

#include "section.hpp"

#include <troupe/deepspeed_plugin.hpp>

namespace troupe::detail {

/// Turns one checked DeepSpeed document into an EffectiveConfig. One use.
class DeepSpeedResolver {
 public:
  DeepSpeedResolver(const Document& document, const ConfigFacts& facts, bool is_train_batch_min)
      : document_(document), facts_(facts), is_train_batch_min_(is_train_batch_min), root_(document, "", read_),
        zero_(root_.section("zero_optimization")) {}

  [[nodiscard]] EffectiveConfig resolve();

 private:
  void stage();
  void buckets();
  void stage3();
  void offload();
  Offload read_offload(const Section& section, bool optimizer);
  void precision();
  void loss_scale(const Section& fp16);
  bool enabled(const Section& section, const std::string& precision);
  void types();
  void clipping();
  void batches();
  std::optional<std::int64_t> micro_batch();
  void optimizer();
  void scheduler();
  void warmup(const Section& params, LRScheduleConfig& made);
  void cycle(const Section& params, LRScheduleConfig& made);

  /// `key` is "auto" and `what` is not known: an error, or noted as unresolved.
  void missing(const Section& section, const std::string& key, const std::string& what);
  void from(const std::string& row, const Section& section, const std::string& key) { out_.sources[row] = section.origin(key); }
  [[nodiscard]] std::optional<std::int64_t> hidden_size() const;

  const Document& document_;
  const ConfigFacts& facts_;
  bool is_train_batch_min_;
  std::set<std::string> read_;
  Section root_;
  Section zero_;
  EffectiveConfig out_;
  int stage_ = 0;
};

}  // namespace troupe::detail
