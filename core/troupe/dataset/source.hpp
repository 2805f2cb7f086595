#pragma once

#include <troupe/dataset/block.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace troupe {

/// The smallest part of a source that is read by itself: a Parquet row group, a range of lines of a text file, an image.
struct Fragment {
  std::string path;                        ///< as messages name it: file, and what of it ("a.parquet, row group 3")
  std::optional<std::int64_t> num_rows;    ///< nothing: only reading tells
  std::int64_t num_bytes = 0;              ///< in storage; 0: unknown
};

/// A row that could not be read, or several that are lost together: the rest of a damaged row group.
struct BadRow {
  std::string where;  ///< "train.csv, line 17" or "a.parquet, row group 3"
  std::string why;
  std::int64_t num_rows = 1;  ///< as many count against the limit
};

/// What readers do with a row that cannot be read. Counted over all readers of a data set.
struct BadRows {
  enum class Policy : std::uint8_t { Fail, Skip };
  Policy policy = Policy::Fail;
  std::int64_t limit = 1000;  ///< of skipped rows of one pass over the data set, then reading fails; -1: none
  bool operator==(const BadRows&) const = default;
};

struct ReadOptions {
  std::vector<std::string> columns;        ///< only these, in this order; empty: all
  std::int64_t block_rows = 4096;          ///< at most, in a block
  std::int64_t block_bytes = 4 << 20;      ///< a block is cut about here
  /// Told of each bad row; throws to end the reading (that is how policy and limit are kept). Called from reader threads.
  std::function<void(const BadRow&)> on_bad_row;
};

/// The blocks of one fragment, in order. Not thread-safe; each reader has its own file handles.
class FragmentReader {
 public:
  virtual ~FragmentReader() = default;
  /// The next block, or nothing at the end. `fragment`, `first_source_row` and `num_source_rows` are set; a bad row that was skipped still
  /// counts as a source row. Throws Failure naming the file and line or row group.
  [[nodiscard]] virtual std::optional<Block> next() = 0;
};

/// Where a data set's rows come from. Immutable; any number of threads.
class Source {
 public:
  virtual ~Source() = default;
  [[nodiscard]] virtual const std::shared_ptr<arrow::Schema>& schema() const = 0;
  /// Always the same, in the same order, on every rank. Ranks and positions speak of fragments by index.
  [[nodiscard]] virtual const std::vector<Fragment>& fragments() const = 0;
  /// Reads `fragment` from its row `first_row` on (rows before it are passed over as cheaply as the format allows).
  /// Throws Failure{FileNotFound, FileCorrupt, DataMalformed}: gone, truncated, or of another schema than when the source was made.
  [[nodiscard]] virtual std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const = 0;
  /// Rows of `fragment`, counted without making columns where metadata does not say. May read the whole fragment.
  [[nodiscard]] virtual std::int64_t count_rows(std::int64_t fragment) const = 0;
  /// Identifies what is read, for positions in checkpoints: paths and sizes, the same on every rank and host.
  [[nodiscard]] virtual std::string fingerprint() const = 0;
};

}  // namespace troupe
