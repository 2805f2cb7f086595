// Streamed data sets: batches of tensors from Parquet on two ranks, beside Ray Data (bench/peers/data_ray.py), and what a stream holds in memory.
//
//   dataset_bench --case iter_batches     last line: {"rows_s": …, "first_batch_s": …}
//   dataset_bench --json FILE             figures without a peer
#include "control_figures.hpp"

#include <troupe/data_iterator.hpp>
#include <troupe/dataset/sources.hpp>

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <parquet/arrow/writer.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <latch>
#include <random>
#include <thread>

#include <unistd.h>

namespace {

namespace fs = std::filesystem;
using troupe::bench::now_s;

constexpr int num_ranks = 2, num_files = 8, width = 64;
constexpr std::int64_t num_rows = 100'000, batch_size = 32;

void check(const arrow::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

/// Rows of 64 random int64 below 30,000 and a label, as the peer has them.
struct Files {
  explicit Files(std::int64_t rows) : directory(fs::temp_directory_path() / ("troupe_dataset_bench_" + std::to_string(::getpid()))) {
    fs::create_directories(directory);
    std::mt19937_64 draw{0};
    for (int f = 0; f < num_files; ++f) {
      const auto count = rows * (f + 1) / num_files - rows * f / num_files;
      auto values = std::make_shared<arrow::Int64Builder>();
      arrow::FixedSizeListBuilder ids{arrow::default_memory_pool(), values, width};
      arrow::Int64Builder labels;
      for (std::int64_t r = 0; r < count; ++r) {
        check(ids.Append());
        for (int i = 0; i < width; ++i) check(values->Append(static_cast<std::int64_t>(draw() % 30'000)));
        check(labels.Append(r % 2));
      }
      const auto list = ids.Finish().ValueOrDie();
      const auto table = arrow::Table::Make(arrow::schema({arrow::field("ids", list->type()), arrow::field("label", arrow::int64())}), {list, labels.Finish().ValueOrDie()});
      const auto file = arrow::io::FileOutputStream::Open((directory / (std::to_string(f) + ".parquet")).string()).ValueOrDie();
      const auto properties = parquet::WriterProperties::Builder().compression(parquet::Compression::SNAPPY)->build();  // pyarrow's default
      check(parquet::arrow::WriteTable(*table, arrow::default_memory_pool(), file, count, properties, parquet::ArrowWriterProperties::Builder().store_schema()->build()));
    }
  }
  ~Files() {
    std::error_code ignored;
    fs::remove_all(directory, ignored);
  }
  fs::path directory;
};

struct Epoch {
  double rows_s = 0;
  double first_batch_s = 0;
};

/// Both ranks go through an epoch at the same time, from making the data set on.
Epoch iter_batches(const fs::path& directory) {
  std::vector<double> seconds(num_ranks), first(num_ranks);
  std::vector<std::int64_t> rows(num_ranks);
  std::latch ready{num_ranks};
  std::vector<std::thread> ranks;
  for (int r = 0; r < num_ranks; ++r) {
    ranks.emplace_back([&, r] {
      ready.arrive_and_wait();
      const auto began = now_s();
      troupe::DataIterator::Setup setup;
      setup.split.rank = r;
      setup.split.world_size = num_ranks;
      const troupe::DataIterator iterator{troupe::Dataset{troupe::parquet_source(directory.string())}, setup};
      auto range = iterator.iter_batches({.batch_size = batch_size, .prefetch_batches = 2});
      const auto place = static_cast<std::size_t>(r);
      for (const auto& batch : range) {
        if (rows[place] == 0) first[place] = now_s() - began;
        rows[place] += batch["label"].size(0);
      }
      seconds[place] = now_s() - began;
    });
  }
  for (auto& rank : ranks) rank.join();
  const auto all = rows[0] + rows[1];
  if (all != num_rows) throw std::runtime_error("iter_batches gave " + std::to_string(all) + " rows");
  return {static_cast<double>(all) / std::max(seconds[0], seconds[1]), std::max(first[0], first[1])};
}

Epoch median_epoch(const fs::path& directory, int runs) {
  std::vector<double> rows_s, first;
  for (int i = 0; i < runs; ++i) {
    const auto epoch = iter_batches(directory);
    rows_s.push_back(epoch.rows_s);
    first.push_back(epoch.first_batch_s);
  }
  return {troupe::bench::median(rows_s), troupe::bench::median(first)};
}

}  // namespace

int main(int argc, char** argv) try {
  const Files files{num_rows};
  if (argc == 3 && std::strcmp(argv[1], "--case") == 0) {
    if (std::string_view{argv[2]} != "iter_batches") throw std::runtime_error("there is no case " + std::string(argv[2]) + "; there is: iter_batches");
    const auto epoch = median_epoch(files.directory, 5);
    std::printf("%s\n", nlohmann::json{{"rows_s", epoch.rows_s}, {"first_batch_s", epoch.first_batch_s}}.dump().c_str());
    return 0;
  }
  if (argc != 3 || std::strcmp(argv[1], "--json") != 0) throw std::runtime_error("usage: dataset_bench --case iter_batches | --json FILE");
  constexpr int runs = 5;
  const auto epoch = median_epoch(files.directory, runs);
  nlohmann::ordered_json figures;
  figures.push_back(troupe::bench::figure("dataset_first_batch", epoch.first_batch_s, {.unit = "s", .peer = 0.1, .peer_name = "limit"}, runs));
  std::ofstream{argv[2]} << figures.dump(1) << "\n";
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "dataset_bench: %s\n", error.what());
  return 1;
}
