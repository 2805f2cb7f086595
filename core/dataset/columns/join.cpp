#include <arrow/array/builder_primitive.h>
#include <arrow/compute/api_vector.h>
#include <arrow/compute/exec.h>
#include <arrow/compute/row/grouper.h>
#include <arrow/datum.h>
#include <arrow/record_batch.h>
#include <arrow/table.h>

#include <troupe/dataset/columns.hpp>

#include <algorithm>

#include "arrow_errors.hpp"
#include "types.hpp"

namespace troupe {

namespace cp = arrow::compute;
using detail::check;
using detail::column_index;
using detail::value;

namespace {

/// Acero's hash join promises no order, and a stream that is resumed needs one: so its table of keys, and rows put together here.
class Joiner {
 public:
  Joiner(const arrow::Schema& left, const std::shared_ptr<arrow::Table>& right, const std::vector<std::string>& keys, JoinKind kind) : kind_(kind), right_(value(right->CombineChunksToBatch(), "join", Errc::OutOfMemory)) {
    std::vector<arrow::TypeHolder> types;
    for (const auto& key : keys) {
      left_keys_.push_back(column_index(left, key, "join, left"));
      right_keys_.push_back(column_index(*right->schema(), key, "join, right"));
      const auto& type = left.field(left_keys_.back())->type();
      const auto& other = right->schema()->field(right_keys_.back())->type();
      if (!type->Equals(*other)) throw Failure{Errc::InvalidArgument, "join: '" + key + "' is " + type->ToString() + " at the left and " + other->ToString() + " at the right; cast one"};
      types.emplace_back(type.get());
    }
    auto fields = left.fields();
    for (int i = 0; with_right() && i < right->num_columns(); ++i) {
      if (std::find(right_keys_.begin(), right_keys_.end(), i) != right_keys_.end()) continue;
      right_columns_.push_back(i);
      fields.push_back(right->schema()->field(i)->WithNullable(true));
    }
    schema_ = arrow::schema(std::move(fields));
    for (const auto& field : schema_->fields()) (void)column_index(*schema_, field->name(), "join");  // two of one name
    groups_ = value(cp::Grouper::Make(types), "join", Errc::Unsupported);
    index_right();
  }

  const SchemaPtr& schema() const { return schema_; }

  RecordBatchPtr operator()(const RecordBatchPtr& left) {
    const auto ids = ids_of(left, left_keys_, false);
    arrow::Int64Builder from_left;
    arrow::Int64Builder from_right;
    const auto append = [](arrow::Int64Builder& to, std::int64_t row) { check(to.Append(row), "join", Errc::OutOfMemory); };
    for (std::int64_t row = 0; row < left->num_rows(); ++row) {
      const auto id = ids->IsValid(row) && !has_null(*left, left_keys_, row) ? static_cast<std::size_t>(ids->Value(row)) : begins_.size();
      const bool found = id + 1 < begins_.size() && begins_[id] < begins_[id + 1];
      if (kind_ == JoinKind::LeftSemi || kind_ == JoinKind::LeftAnti) {
        if (found == (kind_ == JoinKind::LeftSemi)) append(from_left, row);
      } else if (found) {
        for (auto at = begins_[id]; at < begins_[id + 1]; ++at) {
          append(from_left, row);
          append(from_right, rows_[at]);
        }
      } else if (kind_ == JoinKind::LeftOuter) {
        append(from_left, row);
        check(from_right.AppendNull(), "join", Errc::OutOfMemory);
      }
    }
    const auto left_rows = value(from_left.Finish(), "join", Errc::OutOfMemory);
    const auto right_rows = value(from_right.Finish(), "join", Errc::OutOfMemory);
    arrow::ArrayVector columns;
    for (const auto& column : left->columns()) columns.push_back(value(cp::Take(*column, *left_rows), "join", Errc::Internal));
    for (const int i : right_columns_) columns.push_back(value(cp::Take(*right_->column(i), *right_rows), "join", Errc::Internal));
    return arrow::RecordBatch::Make(schema_, left_rows->length(), std::move(columns));
  }

 private:
  bool with_right() const { return kind_ == JoinKind::Inner || kind_ == JoinKind::LeftOuter; }

  static bool has_null(const arrow::RecordBatch& rows, const std::vector<int>& keys, std::int64_t row) {
    return std::any_of(keys.begin(), keys.end(), [&](int key) { return rows.column(key)->IsNull(row); });
  }

  std::shared_ptr<arrow::UInt32Array> ids_of(const RecordBatchPtr& rows, const std::vector<int>& keys, bool learn) {
    std::vector<arrow::Datum> columns;
    for (const int key : keys) columns.emplace_back(rows->column(key));
    const cp::ExecBatch batch{std::move(columns), rows->num_rows()};
    const cp::ExecSpan span{batch};
    return std::static_pointer_cast<arrow::UInt32Array>(value(learn ? groups_->Consume(span) : groups_->Lookup(span), "join", Errc::Internal).make_array());
  }

  /// Right's rows by key: those of key `id` are rows_[begins_[id]] … rows_[begins_[id + 1] - 1], in their order.
  void index_right() {
    const auto ids = ids_of(right_, right_keys_, true);
    begins_.resize(groups_->num_groups() + 1);
    const auto counts = [&](std::int64_t row) { return !has_null(*right_, right_keys_, row); };
    for (std::int64_t row = 0; row < right_->num_rows(); ++row) {
      if (counts(row)) ++begins_[ids->Value(row) + 1];
    }
    for (std::size_t i = 1; i < begins_.size(); ++i) begins_[i] += begins_[i - 1];
    rows_.resize(begins_.back());
    auto next = begins_;
    for (std::int64_t row = 0; row < right_->num_rows(); ++row) {
      if (counts(row)) rows_[next[ids->Value(row)]++] = row;
    }
  }

  JoinKind kind_;
  RecordBatchPtr right_;
  std::vector<int> left_keys_;
  std::vector<int> right_keys_;
  std::vector<int> right_columns_;
  SchemaPtr schema_;
  std::unique_ptr<cp::Grouper> groups_;
  std::vector<std::size_t> begins_;
  std::vector<std::int64_t> rows_;
};

}  // namespace

BatchStream join(BatchStream left, const std::shared_ptr<arrow::Table>& right, const std::vector<std::string>& keys, JoinKind kind) {
  if (keys.empty()) throw Failure{Errc::InvalidArgument, "join without a key"};
  detail::start_compute();
  auto joiner = std::make_shared<Joiner>(*left.schema, right, keys, kind);
  auto schema = joiner->schema();
  return {std::move(schema), [joiner, left = std::move(left)]() -> RecordBatchPtr {
            const auto rows = left.next();
            return rows ? (*joiner)(rows) : nullptr;
          }};
}

}  // namespace troupe
