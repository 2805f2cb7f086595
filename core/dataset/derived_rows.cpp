#include <arrow/array.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <algorithm>
#include <numeric>

#include "arrow_check.hpp"
#include "derived.hpp"
#include "rng.hpp"
#include "shares.hpp"

namespace troupe::detail {

namespace {

/// The first rows of a source. All its fragments stay, those behind the end without rows, so that their number is the same for every pass.
class LimitSource : public Source {
 public:
  LimitSource(SourcePtr source, std::int64_t rows) : source_(std::move(source)), rows_(rows) {}
  const std::shared_ptr<arrow::Schema>& schema() const override { return source_->schema(); }
  const std::vector<Fragment>& fragments() const override {
    std::call_once(once_, [this] {
      fragments_ = source_->fragments();
      std::int64_t left = rows_;
      for (std::size_t i = 0; i < fragments_.size(); ++i) {
        if (left > 0 && !fragments_[i].num_rows) fragments_[i].num_rows = source_->count_rows(static_cast<std::int64_t>(i));
        fragments_[i].num_rows = left > 0 ? std::min(*fragments_[i].num_rows, left) : 0;
        left -= *fragments_[i].num_rows;
      }
    });
    return fragments_;
  }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    struct Reader : FragmentReader {
      std::unique_ptr<FragmentReader> reader;
      std::int64_t last = 0;
      std::optional<Block> next() override {
        auto block = reader->next();
        if (!block || block->first_source_row >= last) return std::nullopt;
        return cut_block(std::move(*block), 0, last);
      }
    };
    auto reader = std::make_unique<Reader>();
    reader->reader = source_->open(fragment, first_row, options);
    reader->last = *fragments()[static_cast<std::size_t>(fragment)].num_rows;
    return reader;
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments()[static_cast<std::size_t>(fragment)].num_rows; }
  std::string fingerprint() const override { return "limit " + std::to_string(rows_) + " (" + source_->fingerprint() + ")"; }

 private:
  SourcePtr source_;
  std::int64_t rows_;
  mutable std::once_flag once_;
  mutable std::vector<Fragment> fragments_;
};

class ConcatSource : public Source {
 public:
  ConcatSource(SourcePtr first, SourcePtr second) : first_(std::move(first)), second_(std::move(second)) {
    if (!first_->schema()->Equals(*second_->schema(), false))
      throw Failure{Errc::InvalidArgument, "union_with needs the same columns: (" + first_->schema()->ToString() + ") and (" + second_->schema()->ToString() + ")"};
    fragments_ = first_->fragments();
    fragments_.insert(fragments_.end(), second_->fragments().begin(), second_->fragments().end());
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return first_->schema(); }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto border = static_cast<std::int64_t>(first_->fragments().size());
    return fragment < border ? first_->open(fragment, first_row, options) : second_->open(fragment - border, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override {
    const auto border = static_cast<std::int64_t>(first_->fragments().size());
    return fragment < border ? first_->count_rows(fragment) : second_->count_rows(fragment - border);
  }
  std::string fingerprint() const override { return "union (" + first_->fingerprint() + ") (" + second_->fingerprint() + ")"; }

 private:
  SourcePtr first_, second_;
  std::vector<Fragment> fragments_;
};

/// Reads a source's rows from any row on, whatever fragments they are in.
class RowCursor {
 public:
  RowCursor(const Source& source, const std::vector<std::int64_t>& offsets, std::int64_t row, ReadOptions options)
      : source_(source), offsets_(offsets), at_(row), options_(std::move(options)) {}
  Batch next(std::int64_t count) {
    Batches parts;
    while (count > 0) {
      if (!block_) open_block();
      const std::int64_t have = block_->num_source_rows;
      if (!block_->rows || block_->rows->num_rows() != have)
        throw Failure{Errc::DataMalformed, "bad rows cannot be skipped in a data set that is zipped: the rows behind them would meet others"};
      const std::int64_t part = std::min(count, have);
      parts.push_back(block_->rows->Slice(0, part));
      count -= part;
      at_ += part;
      *block_ = cut_block(*block_, block_->first_source_row + part, block_->first_source_row + have);
      if (block_->num_source_rows == 0) block_.reset();
    }
    return concatenate(parts);
  }

 private:
  void open_block() {
    for (;;) {
      if (!reader_) {
        const auto next = std::upper_bound(offsets_.begin(), offsets_.end(), at_);
        const auto fragment = std::prev(next) - offsets_.begin();
        const std::int64_t row = at_ - offsets_[static_cast<std::size_t>(fragment)];
        reader_ = source_.open(fragment, row, options_);
        first_ = row;
      }
      block_ = reader_->next();
      if (!block_) {
        reader_ = nullptr;
        continue;
      }
      *block_ = cut_block(*block_, first_, std::numeric_limits<std::int64_t>::max());
      if (block_->num_source_rows > 0) return;
    }
  }
  const Source& source_;
  const std::vector<std::int64_t>& offsets_;
  std::int64_t at_;
  std::int64_t first_ = 0;
  ReadOptions options_;
  std::unique_ptr<FragmentReader> reader_;
  std::optional<Block> block_;
};

class ZipSource : public Source {
 public:
  ZipSource(SourcePtr left, SourcePtr right) : left_(std::move(left)), right_(std::move(right)) {
    arrow::FieldVector fields = left_->schema()->fields();
    for (const auto& field : right_->schema()->fields())
      fields.push_back(left_->schema()->GetFieldIndex(field->name()) < 0 ? field : field->WithName(field->name() + "_1"));
    schema_ = arrow::schema(std::move(fields));
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override {
    std::call_once(once_, [this] {
      fragments_ = left_->fragments();
      const auto counts = RowCounts{left_}.all(0);
      left_offsets_ = offsets_of(counts);
      right_offsets_ = offsets_of(RowCounts{right_}.all(0));
      for (std::size_t i = 0; i < counts.size(); ++i) fragments_[i].num_rows = counts[i];
    });
    if (left_offsets_.back() != right_offsets_.back())
      throw Failure{Errc::InvalidArgument, "zip needs as many rows on both sides: there are " + std::to_string(left_offsets_.back()) + " and " +
                                               std::to_string(right_offsets_.back())};
    return fragments_;
  }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    struct Reader : FragmentReader {
      Reader(const ZipSource& z, std::int64_t f, std::int64_t row, const ReadOptions& o)
          : zip(z), fragment(f), first(row), left(zip.left_->open(f, row, plain(o))),
            right(*zip.right_, zip.right_offsets_, zip.left_offsets_[static_cast<std::size_t>(f)] + row, plain(o)), columns(o.columns) {}
      static ReadOptions plain(ReadOptions o) {
        o.columns.clear();
        return o;
      }
      std::optional<Block> next() override {
        auto block = left->next();
        if (!block) return block;
        *block = cut_block(*block, first, std::numeric_limits<std::int64_t>::max());
        if (!block->rows || block->rows->num_rows() != block->num_source_rows)
          throw Failure{Errc::DataMalformed, "bad rows cannot be skipped in a data set that is zipped: the rows behind them would meet others"};
        const Batch other = right.next(block->num_source_rows);
        auto all = block->rows->columns();
        if (other) all.insert(all.end(), other->columns().begin(), other->columns().end());
        block->rows = arrow::RecordBatch::Make(zip.schema_, block->num_source_rows, std::move(all));
        if (!columns.empty()) {
          std::vector<int> indices;
          for (const auto& column : columns) indices.push_back(zip.schema_->GetFieldIndex(column));
          block->rows = check(block->rows->SelectColumns(indices), "zip");
        }
        return block;
      }
      const ZipSource& zip;
      std::int64_t fragment;
      std::int64_t first;
      std::unique_ptr<FragmentReader> left;
      RowCursor right;
      std::vector<std::string> columns;
    };
    static_cast<void>(fragments());
    return std::make_unique<Reader>(*this, fragment, first_row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return *fragments()[static_cast<std::size_t>(fragment)].num_rows; }
  std::string fingerprint() const override { return "zip (" + left_->fingerprint() + ") (" + right_->fingerprint() + ")"; }

 private:
  SourcePtr left_, right_;
  std::shared_ptr<arrow::Schema> schema_;
  mutable std::once_flag once_;
  mutable std::vector<Fragment> fragments_;
  mutable std::vector<std::int64_t> left_offsets_, right_offsets_;
};

class SampleSource : public Source {
 public:
  SampleSource(SourcePtr source, std::uint64_t seed, std::uint64_t from, std::uint64_t to) : source_(std::move(source)), seed_(seed), from_(from), to_(to) {}
  const std::shared_ptr<arrow::Schema>& schema() const override { return source_->schema(); }
  const std::vector<Fragment>& fragments() const override {
    std::call_once(once_, [this] {
      fragments_ = source_->fragments();
      for (std::size_t i = 0; i < fragments_.size(); ++i)
        if (fragments_[i].num_rows) fragments_[i].num_rows = count(static_cast<std::int64_t>(i), *fragments_[i].num_rows);
    });
    return fragments_;
  }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    struct Reader : FragmentReader {
      const SampleSource& sample;
      std::int64_t fragment;
      std::int64_t at;  ///< row of the sample
      std::int64_t first_source_row;
      std::unique_ptr<FragmentReader> reader;
      Reader(const SampleSource& s, std::int64_t f, std::int64_t row, std::int64_t source_row, const ReadOptions& options)
          : sample(s), fragment(f), at(row), first_source_row(source_row), reader(s.source_->open(f, source_row, options)) {}
      std::optional<Block> next() override {
        for (;;) {
          auto read = reader->next();
          if (!read) return std::nullopt;
          const Block block = cut_block(std::move(*read), first_source_row, std::numeric_limits<std::int64_t>::max());
          const std::int64_t have = block.rows ? block.rows->num_rows() : 0;
          arrow::Int64Builder kept;
          std::int64_t wanted = 0;
          for (std::int64_t i = 0; i < block.num_source_rows; ++i)
            if (sample.has(fragment, block.first_source_row + i)) {
              ++wanted;
              if (i < have) check(kept.Append(i), "random_split");
            }
          if (wanted == 0) continue;
          Block out{nullptr, fragment, at, wanted};
          const auto indices = check(kept.Finish(), "random_split");
          if (block.rows) out.rows = check(arrow::compute::Take(arrow::Datum{block.rows}, arrow::Datum{indices}), "random_split").record_batch();
          at += wanted;
          return out;
        }
      }
    };
    // The source's row that is the sample's row `first_row`.
    std::int64_t row = 0;
    for (std::int64_t found = 0;; ++row)
      if (found == first_row) break;
      else if (has(fragment, row)) ++found;
    return std::make_unique<Reader>(*this, fragment, first_row, row, options);
  }
  std::int64_t count_rows(std::int64_t fragment) const override { return count(fragment, source_->count_rows(fragment)); }
  std::string fingerprint() const override {
    return "split " + std::to_string(seed_) + " " + std::to_string(from_) + " " + std::to_string(to_) + " (" + source_->fingerprint() + ")";
  }

 private:
  bool has(std::int64_t fragment, std::int64_t row) const {
    const std::uint64_t hash = mix(seed_, static_cast<std::uint64_t>(fragment), static_cast<std::uint64_t>(row));
    return hash >= from_ && (to_ == 0 || hash < to_);
  }
  std::int64_t count(std::int64_t fragment, std::int64_t rows) const {
    std::int64_t found = 0;
    for (std::int64_t row = 0; row < rows; ++row) found += has(fragment, row) ? 1 : 0;
    return found;
  }
  SourcePtr source_;
  std::uint64_t seed_, from_, to_;
  mutable std::once_flag once_;
  mutable std::vector<Fragment> fragments_;
};

}  // namespace

SourcePtr limit_source(SourcePtr source, std::int64_t rows) {
  return derive({std::move(source)}, [rows](const auto& from) { return std::make_shared<LimitSource>(from[0], rows); });
}
SourcePtr concat_source(SourcePtr first, SourcePtr second) {
  return derive({std::move(first), std::move(second)}, [](const auto& from) { return std::make_shared<ConcatSource>(from[0], from[1]); });
}
SourcePtr zip_source(SourcePtr left, SourcePtr right) {
  return derive({std::move(left), std::move(right)}, [](const auto& from) { return std::make_shared<ZipSource>(from[0], from[1]); });
}
SourcePtr sample_source(SourcePtr source, std::uint64_t seed, std::uint64_t from_hash, std::uint64_t to_hash) {
  return derive({std::move(source)}, [=](const auto& from) { return std::make_shared<SampleSource>(from[0], seed, from_hash, to_hash); });
}

}  // namespace troupe::detail
