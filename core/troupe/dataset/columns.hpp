#pragma once

#include <troupe/dataset/expression.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace arrow {
class RecordBatch;
class Scalar;
class Schema;
class Table;
}  // namespace arrow

namespace troupe {

using RecordBatchPtr = std::shared_ptr<arrow::RecordBatch>;
using SchemaPtr = std::shared_ptr<arrow::Schema>;

// ---- block by block ------------------------------------------------------------------------------------------------

/// What a step makes of each batch, and the columns that it hands on. Made once for the columns that come in, where names and types are
/// checked: Failure{InvalidArgument} with the nearest name. Any number of threads may apply it.
struct ColumnStep {
  SchemaPtr schema;
  std::function<RecordBatchPtr(const RecordBatchPtr&)> apply;
};
[[nodiscard]] ColumnStep filter_step(const SchemaPtr& in, const Expression& condition);
[[nodiscard]] ColumnStep select_step(const SchemaPtr& in, const std::vector<std::string>& columns);
[[nodiscard]] ColumnStep drop_step(const SchemaPtr& in, const std::vector<std::string>& columns);
/// Pairs of old and new name.
[[nodiscard]] ColumnStep rename_step(const SchemaPtr& in, const std::vector<std::pair<std::string, std::string>>& names);
/// Adds the column behind the others, or replaces the one of that name where it stands.
[[nodiscard]] ColumnStep with_column_step(const SchemaPtr& in, const std::string& name, const Expression& value);

// ---- over a whole stream -------------------------------------------------------------------------------------------

/// Batches of one schema, one after another; nullptr at the end, and from then on. One caller at a time.
struct BatchStream {
  SchemaPtr schema;
  std::function<RecordBatchPtr()> next;
};
[[nodiscard]] BatchStream stream_of(const std::shared_ptr<arrow::Table>& table);
/// All of it, in memory.
[[nodiscard]] std::shared_ptr<arrow::Table> collect(BatchStream rows);

struct SortKey {
  std::string column;
  bool descending = false;
};
struct SortOptions {
  std::int64_t memory_bytes = 256 << 20;   ///< of rows in memory; what is more is sorted in runs on disk
  std::filesystem::path spill_directory;   ///< empty: the system's temporary directory; files in it have no name once they are open
  std::int64_t block_rows = 4096;          ///< of what comes out
};
/// Stable: rows of equal keys stay in their order. Nulls come last, NaN before them. Reads all of `rows` at the first `next`.
[[nodiscard]] BatchStream sort(BatchStream rows, std::vector<SortKey> keys, SortOptions options = {});

struct Aggregate {
  enum class Kind : std::uint8_t { Count, CountDistinct, Sum, Mean, Min, Max, Std, First, Last, List };
  Kind kind = Kind::Count;
  std::string column;  ///< Count of "": rows; of a column: values that are not null
  std::string name;    ///< of the result; empty: "sum(length)", "count()"
};
/// One row per distinct combination of `keys`, with the keys' columns first, sorted by them; without keys: one row. The groups are kept in
/// memory, the rows are not. Null keys are a group. Std is the population's.
[[nodiscard]] std::shared_ptr<arrow::Table> group_by(BatchStream rows, const std::vector<std::string>& keys, const std::vector<Aggregate>& aggregates);

[[nodiscard]] std::int64_t count(BatchStream rows);
[[nodiscard]] std::shared_ptr<arrow::Scalar> aggregate(BatchStream rows, Aggregate::Kind kind, const std::string& column);
/// The distinct values of a column, sorted, null last.
[[nodiscard]] std::shared_ptr<arrow::Table> unique(BatchStream rows, const std::string& column);

enum class JoinKind : std::uint8_t { Inner, LeftOuter, LeftSemi, LeftAnti };
/// Rows of `left` with those of `right` that have equal keys; `right` is held in memory, `left` streams. Columns: left's, then
/// right's without its keys. Null keys meet nothing. The order of rows is left's, and right's among the matches of one.
[[nodiscard]] BatchStream join(BatchStream left, const std::shared_ptr<arrow::Table>& right, const std::vector<std::string>& keys, JoinKind kind = JoinKind::Inner);

}  // namespace troupe
