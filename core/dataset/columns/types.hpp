#pragma once

#include <arrow/type_fwd.h>

#include <memory>
#include <string>
#include <vector>

namespace troupe::detail {

/// The type that `ColumnTypes` calls so. Throws Failure{InvalidArgument} with the nearest name.
[[nodiscard]] std::shared_ptr<arrow::DataType> type_named(const std::string& name);

/// The index of a column. Throws Failure{InvalidArgument}: "<what>: there is no column 'x'; did you mean 'y'?".
[[nodiscard]] int column_index(const arrow::Schema& schema, const std::string& column, const std::string& what);

/// The schema with plain values where it has dictionaries, without metadata; and rows of it.
[[nodiscard]] std::shared_ptr<arrow::Schema> plain(const arrow::Schema& schema);
[[nodiscard]] arrow::Result<std::shared_ptr<arrow::RecordBatch>> plain(const std::shared_ptr<arrow::RecordBatch>& rows, const std::shared_ptr<arrow::Schema>& schema);

/// Starts Arrow's compute functions, once.
void start_compute();

/// Why two schemas differ ("column 'x' is int64 there and string here"), or nothing. Order, metadata and nullability do not count.
[[nodiscard]] std::string difference(const arrow::Schema& there, const arrow::Schema& here);

}  // namespace troupe::detail
