#pragma once

#include <arrow/array.h>
#include <arrow/array/builder_primitive.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>

#include <troupe/dataset/dataset.hpp>
#include <troupe/errors.hpp>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace troupe::test {

/// Rows 0, 1, 2, … in fragments of given sizes: column "id" counts through all of them. It can break on purpose, and it counts its readers.
class NumbersSource : public Source {
 public:
  struct Options {
    std::vector<std::int64_t> sizes;
    bool tells_rows = true;            ///< metadata knows the number of rows
    std::int64_t cut = 1000;           ///< readers never give larger blocks
    std::int64_t fails_at = -1;        ///< opening this fragment throws
    std::int64_t fails_after = -1;     ///< reading past this row of any fragment throws
    std::set<std::int64_t> bad;        ///< ids that cannot be read
    std::chrono::microseconds delay{0};  ///< a block
    std::int64_t payload = 0;          ///< bytes more a row
  };
  explicit NumbersSource(Options options) : options_(std::move(options)) {
    arrow::FieldVector fields{arrow::field("id", arrow::int64())};
    if (options_.payload > 0) fields.push_back(arrow::field("payload", arrow::fixed_size_binary(static_cast<int>(options_.payload))));
    schema_ = arrow::schema(fields);
    std::int64_t first = 0;
    for (std::size_t i = 0; i < options_.sizes.size(); ++i) {
      Fragment fragment;
      fragment.path = "part" + std::to_string(i);
      if (options_.tells_rows) fragment.num_rows = options_.sizes[i];
      fragments_.push_back(fragment);
      firsts_.push_back(first);
      first += options_.sizes[i];
    }
  }
  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override;
  std::int64_t count_rows(std::int64_t fragment) const override {
    ++num_counts;
    return options_.sizes[static_cast<std::size_t>(fragment)];
  }
  std::string fingerprint() const override { return "numbers " + std::to_string(options_.sizes.size()); }

  mutable std::atomic<int> num_open{0};
  mutable std::atomic<int> num_opened{0};
  mutable std::atomic<int> num_counts{0};
  mutable std::atomic<std::int64_t> rows_read{0};

 private:
  friend class NumbersReader;
  Options options_;
  std::shared_ptr<arrow::Schema> schema_;
  std::vector<Fragment> fragments_;
  std::vector<std::int64_t> firsts_;
};

class NumbersReader : public FragmentReader {
 public:
  NumbersReader(const NumbersSource& source, std::int64_t fragment, std::int64_t first, ReadOptions options)
      : source_(source), fragment_(fragment), at_(first), options_(std::move(options)) {
    ++source_.num_open;
    ++source_.num_opened;
  }
  ~NumbersReader() override { --source_.num_open; }
  std::optional<Block> next() override {
    const auto& o = source_.options_;
    const std::int64_t size = o.sizes[static_cast<std::size_t>(fragment_)];
    if (at_ >= size) return std::nullopt;
    if (o.delay.count() > 0) std::this_thread::sleep_for(o.delay);
    const std::int64_t last = std::min({size, at_ + o.cut, at_ + options_.block_rows});
    if (o.fails_after >= 0 && last > o.fails_after)
      throw Failure{Errc::FileCorrupt, source_.fragments()[static_cast<std::size_t>(fragment_)].path + ": broken after row " + std::to_string(o.fails_after)};
    arrow::Int64Builder ids;
    for (std::int64_t i = at_; i < last; ++i) {
      const std::int64_t id = source_.firsts_[static_cast<std::size_t>(fragment_)] + i;
      if (o.bad.contains(id)) {
        const BadRow bad{"part" + std::to_string(fragment_) + ", row " + std::to_string(i), "bad on purpose"};
        options_.on_bad_row(bad);
      } else {
        ids.Append(id).ok();
      }
    }
    const std::int64_t rows = ids.length();
    arrow::ArrayVector columns{ids.Finish().ValueOrDie()};
    if (o.payload > 0) {
      auto bytes = arrow::AllocateBuffer(rows * o.payload).ValueOrDie();
      std::memset(bytes->mutable_data(), 7, static_cast<std::size_t>(rows * o.payload));
      columns.push_back(std::make_shared<arrow::FixedSizeBinaryArray>(arrow::fixed_size_binary(static_cast<int>(o.payload)), rows, std::move(bytes)));
    }
    Block block{arrow::RecordBatch::Make(source_.schema_, rows, columns), fragment_, at_, last - at_};
    source_.rows_read += last - at_;
    at_ = last;
    return block;
  }

 private:
  const NumbersSource& source_;
  std::int64_t fragment_;
  std::int64_t at_;
  ReadOptions options_;
};

inline std::unique_ptr<FragmentReader> NumbersSource::open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const {
  if (fragment == options_.fails_at) throw Failure{Errc::FileNotFound, fragments_[static_cast<std::size_t>(fragment)].path + " is gone"};
  return std::make_unique<NumbersReader>(*this, fragment, first_row, options);
}

inline std::shared_ptr<NumbersSource> numbers(NumbersSource::Options options) { return std::make_shared<NumbersSource>(std::move(options)); }
inline std::shared_ptr<NumbersSource> numbers(std::vector<std::int64_t> sizes) {
  NumbersSource::Options options;
  options.sizes = std::move(sizes);
  return numbers(options);
}

/// The "id" column of a batch.
inline std::vector<std::int64_t> ids_of(const arrow::RecordBatch& batch) {
  const auto& column = static_cast<const arrow::Int64Array&>(*batch.GetColumnByName("id"));
  return {column.raw_values(), column.raw_values() + column.length()};
}

inline void append(std::vector<std::int64_t>& to, const std::vector<std::int64_t>& more) { to.insert(to.end(), more.begin(), more.end()); }

/// Everything that is left in a stream.
inline std::vector<std::int64_t> drain(DatasetStream& stream) {
  std::vector<std::int64_t> ids;
  while (const auto batch = stream.next()) append(ids, ids_of(*batch));
  return ids;
}

inline std::vector<std::int64_t> counting(std::int64_t first, std::int64_t last) {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = first; i < last; ++i) ids.push_back(i);
  return ids;
}

/// Small blocks, so that little data makes many.
inline StreamOptions small_blocks(int rank = 0, int world_size = 1, SplitEqual equal = SplitEqual::Uneven) {
  StreamOptions options;
  options.split.rank = rank;
  options.split.world_size = world_size;
  options.split.equal = equal;
  options.execution.block_rows = 8;
  return options;
}

}  // namespace troupe::test
