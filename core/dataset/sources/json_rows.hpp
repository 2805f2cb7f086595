#pragma once

#include <arrow/type_fwd.h>

#include <string>

namespace troupe::detail {

/// Appends each row as a JSON object on a line. Text is written as it is, what is no JSON (dates, decimals) as a string, NaN and infinity as null.
void append_json_rows(const arrow::RecordBatch& rows, std::string& out);
/// Throws Failure{Unsupported} naming the column that has no JSON: bytes, maps, unions.
void check_json_types(const arrow::Schema& schema);

}  // namespace troupe::detail
