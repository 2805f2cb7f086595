#include <arrow/compute/expression.h>
#include <arrow/dataset/file_parquet.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/schema.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>
#include <parquet/statistics.h>

#include <algorithm>
#include <list>
#include <mutex>

#include "../columns/arrow_errors.hpp"
#include "../columns/types.hpp"
#include "columnar_rows.hpp"
#include "files.hpp"
#include "in_parallel.hpp"

namespace troupe {

namespace pq = parquet;
using Metadata = std::shared_ptr<pq::FileMetaData>;

namespace {

/// More of a row group than this is read page by page, not as a whole.
constexpr std::int64_t kWholeBytes = 16 << 20;
constexpr std::size_t kFootersKept = 16;

/// What Parquet throws, as a Failure that names the file.
template <class F>
auto guarded(const std::string& where, F&& act) {
  try {
    return act();
  } catch (const Failure&) {
    throw;
  } catch (const pq::ParquetStatusException& error) {
    detail::fail(error.status(), where, Errc::FileCorrupt);
  } catch (const std::bad_alloc&) {
    throw Failure{Errc::OutOfMemory, where + ": memory ran out"};
  } catch (const std::exception& error) {
    throw Failure{Errc::FileCorrupt, where + ": " + detail::short_text(error.what())};
  }
}

struct Place {
  std::size_t file = 0;
  int row_group = 0;
  std::int64_t num_rows = 0;
};

/// The file's columns, and which of the columns on disk each is made of.
pq::arrow::SchemaManifest manifest_of(const pq::FileMetaData& metadata, const std::string& where) {
  pq::arrow::SchemaManifest manifest;
  detail::check(pq::arrow::SchemaManifest::Make(metadata.schema(), metadata.key_value_metadata(), pq::default_arrow_reader_properties(), &manifest), where, Errc::FileCorrupt);
  return manifest;
}

std::shared_ptr<arrow::Schema> schema_of(const pq::FileMetaData& metadata, const std::string& where) {
  arrow::FieldVector fields;
  for (const auto& field : manifest_of(metadata, where).schema_fields) fields.push_back(field.field);
  return detail::plain(*arrow::schema(std::move(fields)));
}

class RowGroupReader final : public detail::ColumnarReader {
 public:
  RowGroupReader(std::string where, std::int64_t fragment, std::int64_t first_row, const Place& place, std::shared_ptr<arrow::Schema> schema, const ReadOptions& options, std::unique_ptr<pq::arrow::FileReader> file, const std::vector<int>& leaves, std::vector<int> order)
      : ColumnarReader(std::move(where), fragment, first_row, place.num_rows, std::move(schema), options), file_(std::move(file)), order_(std::move(order)) {
    batches_ = detail::value(file_->GetRecordBatchReader({place.row_group}, leaves), where_, Errc::FileCorrupt);
  }

 protected:
  std::shared_ptr<arrow::RecordBatch> read() override {
    return guarded(where_, [&]() -> std::shared_ptr<arrow::RecordBatch> {
      const auto rows = detail::value(batches_->Next(), where_, Errc::FileCorrupt);
      if (!rows) return nullptr;
      arrow::ArrayVector columns;
      for (const int index : order_) columns.push_back(rows->column(index));
      const auto picked = arrow::RecordBatch::Make(rows->schema(), rows->num_rows(), std::move(columns));
      return detail::value(detail::plain(picked, schema_), where_, Errc::FileCorrupt);
    });
  }

 private:
  std::unique_ptr<pq::arrow::FileReader> file_;
  std::vector<int> order_;  ///< where each column of ours is among those read
  std::unique_ptr<arrow::RecordBatchReader> batches_;
};

class ParquetSource final : public Source {
 public:
  ParquetSource(const Paths& paths, ParquetOptions options) : files_(paths, options.files, {".parquet", ".pq"}), filter_(std::move(options.filter)) {
    std::vector<Metadata> all(files_.size());
    detail::in_parallel(files_.size(), 8, [&](std::size_t i) { all[i] = footer(files_[i], *files_.open(files_[i]).get()); });
    for (std::size_t i = 0; i < files_.size(); ++i) add(i, *all[i]);
  }

  const std::shared_ptr<arrow::Schema>& schema() const override { return schema_; }
  const std::vector<Fragment>& fragments() const override { return fragments_; }
  std::int64_t count_rows(std::int64_t fragment) const override { return places_.at(static_cast<std::size_t>(fragment)).num_rows; }
  std::string fingerprint() const override { return files_.fingerprint("parquet" + (filter_ ? " " + filter_->text() : "")); }

  std::unique_ptr<FragmentReader> open(std::int64_t fragment, std::int64_t first_row, const ReadOptions& options) const override {
    const auto& place = places_.at(static_cast<std::size_t>(fragment));
    const auto& file = files_[place.file];
    const auto where = fragments_[static_cast<std::size_t>(fragment)].path;
    return guarded(where, [&]() -> std::unique_ptr<FragmentReader> {
      auto input = files_.open(file);
      const auto metadata = kept_footer(place.file, *input);
      check_same(place, *metadata);
      return reader(where, fragment, first_row, place, options, std::move(input), metadata);
    });
  }

 private:
  static Metadata footer(const detail::DataFile& file, arrow::io::RandomAccessFile& input) {
    return guarded(file.name, [&] {
      const std::shared_ptr<arrow::io::RandomAccessFile> borrowed{std::shared_ptr<void>{}, &input};
      return pq::ReadMetaData(borrowed);
    });
  }

  void add(std::size_t file, const pq::FileMetaData& metadata) {
    const auto& name = files_[file].name;
    const auto found = guarded(name, [&] { return schema_of(metadata, name); });
    if (!schema_) {
      schema_ = found;
    } else if (const auto why = detail::difference(*schema_, *found); !why.empty()) {
      throw Failure{Errc::DataMalformed, name + " has other columns than " + files_[0].name + ": " + why};
    }
    for (int i = 0; i < metadata.num_row_groups(); ++i) {
      guarded(name, [&] {
        const auto group = metadata.RowGroup(i);
        if (group->num_rows() < 0) throw Failure{Errc::FileCorrupt, name + ", row group " + std::to_string(i) + ": a negative number of rows"};
        if (group->num_rows() == 0 || (filter_ && !may_match(metadata, *group))) return;
        places_.push_back({file, i, group->num_rows()});
        fragments_.push_back({name + ", row group " + std::to_string(i), group->num_rows(), compressed_bytes(*group)});
      });
    }
  }

  static std::int64_t compressed_bytes(const pq::RowGroupMetaData& group) {
    std::int64_t bytes = 0;
    for (int i = 0; i < group.num_columns(); ++i) bytes += group.ColumnChunk(i)->total_compressed_size();
    return bytes;
  }

  bool may_match(const pq::FileMetaData& metadata, const pq::RowGroupMetaData& group) const {
    namespace cp = arrow::compute;
    detail::start_compute();
    for (const auto& column : filter_->columns()) (void)detail::column_index(*schema_, column, "parquet filter");
    std::vector<cp::Expression> known;
    for (int i = 0; i < group.num_columns(); ++i) {
      const auto path = metadata.schema()->Column(i)->path()->ToDotVector();
      const auto field = path.size() == 1 ? schema_->GetFieldByName(path[0]) : nullptr;
      const auto statistics = field ? group.ColumnChunk(i)->statistics() : nullptr;
      if (!statistics) continue;
      if (auto range = arrow::dataset::ParquetFileFragment::EvaluateStatisticsAsExpression(*field, *statistics)) known.push_back(std::move(*range));
    }
    const auto what = "parquet filter " + filter_->text();
    const auto bound = detail::value(filter_->arrow().Bind(*schema_), what, Errc::InvalidArgument);
    const auto ranges = detail::value(cp::and_(known).Bind(*schema_), what, Errc::Internal);
    return detail::value(cp::SimplifyWithGuarantee(bound, ranges), what, Errc::Internal).IsSatisfiable();
  }

  /// Footers of files that were opened last: opening the next row group of a file does not parse it again, unless the file was written over.
  Metadata kept_footer(std::size_t file, arrow::io::RandomAccessFile& input) const {
    const auto changed = files_.changed_at(files_[file]);
    const std::lock_guard lock{mutex_};
    const auto found = std::find_if(footers_.begin(), footers_.end(), [&](const Footer& kept) { return kept.file == file && kept.changed == changed; });
    if (found != footers_.end()) {
      footers_.splice(footers_.begin(), footers_, found);
    } else {
      footers_.push_front({file, changed, footer(files_[file], input)});
      if (footers_.size() > kFootersKept) footers_.pop_back();
    }
    return footers_.front().metadata;
  }

  void check_same(const Place& place, const pq::FileMetaData& metadata) const {
    const auto& name = files_[place.file].name;
    std::string why = detail::difference(*schema_, *schema_of(metadata, name));
    if (why.empty() && place.row_group >= metadata.num_row_groups()) why = "it has " + std::to_string(metadata.num_row_groups()) + " row groups";
    if (why.empty() && metadata.RowGroup(place.row_group)->num_rows() != place.num_rows) why = "row group " + std::to_string(place.row_group) + " has another number of rows";
    if (!why.empty()) throw Failure{Errc::DataMalformed, name + " has changed since the data set was made: " + why};
  }

  std::unique_ptr<FragmentReader> reader(const std::string& where, std::int64_t fragment, std::int64_t first_row, const Place& place, const ReadOptions& options, std::shared_ptr<arrow::io::RandomAccessFile> input, const Metadata& metadata) const {
    const auto manifest = manifest_of(*metadata, where);
    const auto names = options.columns.empty() ? schema_->field_names() : options.columns;
    std::vector<int> tops;
    std::vector<int> leaves;
    arrow::FieldVector fields;
    for (const auto& name : names) {
      fields.push_back(schema_->field(detail::column_index(*schema_, name, "parquet")));
      tops.push_back(top_level(manifest, name));
      add_leaves(manifest.schema_fields[static_cast<std::size_t>(tops.back())], leaves);
    }
    std::sort(leaves.begin(), leaves.end());
    leaves.erase(std::unique(leaves.begin(), leaves.end()), leaves.end());
    const auto group = metadata->RowGroup(place.row_group);
    std::int64_t stored = 0;
    std::int64_t in_memory = 0;
    for (const int leaf : leaves) {
      stored += group->ColumnChunk(leaf)->total_compressed_size();
      in_memory += group->ColumnChunk(leaf)->total_uncompressed_size();
    }

    pq::ReaderProperties properties;
    properties.set_page_checksum_verification(true);
    if (stored > kWholeBytes) {
      properties.enable_buffered_stream();
      properties.set_buffer_size(std::clamp<std::int64_t>(kWholeBytes / static_cast<std::int64_t>(leaves.size()), 64 << 10, 4 << 20));
    }
    pq::ArrowReaderProperties arrow_properties{false};
    arrow_properties.set_batch_size(std::clamp<std::int64_t>(options.block_bytes / std::max<std::int64_t>(1, in_memory / place.num_rows), 1, std::max<std::int64_t>(1, options.block_rows)));
    // All columns of a small row group come in few requests, which is what an object store wants; on a disk it only costs threads.
    arrow_properties.set_pre_buffer(stored <= kWholeBytes && files_.remote(files_[place.file]));
    pq::arrow::FileReaderBuilder builder;
    detail::check(builder.Open(std::move(input), properties, metadata), where, Errc::FileCorrupt);
    std::unique_ptr<pq::arrow::FileReader> file;
    detail::check(builder.properties(arrow_properties)->Build(&file), where, Errc::FileCorrupt);
    return std::make_unique<RowGroupReader>(where, fragment, first_row, place, arrow::schema(std::move(fields)), options, std::move(file), leaves, ranks_of(tops));
  }

  /// Readers hand out columns as they stand in the file: where each of ours is among them.
  static std::vector<int> ranks_of(const std::vector<int>& tops) {
    auto sorted = tops;
    std::sort(sorted.begin(), sorted.end());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    std::vector<int> ranks;
    for (const int top : tops) ranks.push_back(static_cast<int>(std::lower_bound(sorted.begin(), sorted.end(), top) - sorted.begin()));
    return ranks;
  }

  static int top_level(const pq::arrow::SchemaManifest& manifest, const std::string& name) {
    for (std::size_t i = 0; i < manifest.schema_fields.size(); ++i) {
      if (manifest.schema_fields[i].field->name() == name) return static_cast<int>(i);
    }
    throw Failure{Errc::Internal, "the file has no column '" + name + "'"};
  }

  static void add_leaves(const pq::arrow::SchemaField& field, std::vector<int>& leaves) {
    if (field.column_index >= 0) leaves.push_back(field.column_index);
    for (const auto& child : field.children) add_leaves(child, leaves);
  }

  detail::FileSet files_;
  std::optional<Expression> filter_;
  std::shared_ptr<arrow::Schema> schema_;
  std::vector<Fragment> fragments_;
  std::vector<Place> places_;

  struct Footer {
    std::size_t file = 0;
    std::int64_t changed = 0;
    Metadata metadata;
  };
  mutable std::mutex mutex_;
  mutable std::list<Footer> footers_;  ///< the one used last first
};

}  // namespace

std::shared_ptr<const Source> parquet_source(const Paths& paths, ParquetOptions options) { return std::make_shared<ParquetSource>(paths, std::move(options)); }

}  // namespace troupe
