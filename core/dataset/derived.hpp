#pragma once

#include "plan.hpp"

namespace troupe::detail {

using SourcePtr = std::shared_ptr<const Source>;

/// A source made from others. Where one of these differs from pass to pass, so does the result.
[[nodiscard]] SourcePtr derive(std::vector<SourcePtr> from, std::function<SourcePtr(const std::vector<SourcePtr>&)> make);

/// The rows that a plan makes, as a source: order and steps are its own business. Its fragments are the plan's. Steps run where it is read.
/// Throws Failure{Unsupported} when the plan shuffles in windows. @param what asks, for the message.
[[nodiscard]] SourcePtr as_source(const Plan& plan, const std::string& what);
/// The same without the order of fragments.
[[nodiscard]] SourcePtr as_source_unordered(const Plan& plan, const std::string& what);

[[nodiscard]] SourcePtr ordered_source(const Plan& plan);
[[nodiscard]] SourcePtr steps_source(SourcePtr source, std::vector<std::string> columns, std::vector<Step> steps);
[[nodiscard]] SourcePtr limit_source(SourcePtr source, std::int64_t rows);
[[nodiscard]] SourcePtr concat_source(SourcePtr first, SourcePtr second);
[[nodiscard]] SourcePtr zip_source(SourcePtr left, SourcePtr right);
/// Rows whose hash of `seed`, fragment and row lies in [from, to) of 2^64; `to` 0: to the end.
[[nodiscard]] SourcePtr sample_source(SourcePtr source, std::uint64_t seed, std::uint64_t from, std::uint64_t to);
[[nodiscard]] SourcePtr shuffled_source(const Dataset& dataset, std::uint64_t seed);

/// A source that is made when it is first read. Only the schema and the fingerprint are known before.
class LazySource : public Source {
 public:
  LazySource(std::shared_ptr<arrow::Schema> schema, std::string fingerprint, std::function<SourcePtr()> make)
      : schema_(std::move(schema)), fingerprint_(std::move(fingerprint)), make_(std::move(make)) {}
  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return made().fragments(); }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    return made().open(fragment, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return made().count_rows(fragment); }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  const Source& made() const {
    std::call_once(once_, [this] { source_ = make_(); });
    return *source_;
  }
  std::shared_ptr<arrow::Schema> schema_;
  std::string fingerprint_;
  std::function<SourcePtr()> make_;
  mutable std::once_flag once_;
  mutable SourcePtr source_;
};

/// `block` without what lies before row `first` or from row `last` on. Of a block with bad rows left out, the last ones count as missing.
[[nodiscard]] Block cut_block(Block block, std::int64_t first, std::int64_t last);

}  // namespace troupe::detail
