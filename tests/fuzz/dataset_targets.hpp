#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace troupe::fuzz {

// As targets.hpp, for the files of data sets; apart, since these need Apache Arrow. Each reads `data` as a file of that format, bad rows skipped, in
// blocks and fragments of several sizes, which must agree in rows and in bad rows.

int csv_file(const std::uint8_t* data, std::size_t size);
int csv_quoted_lines(const std::uint8_t* data, std::size_t size);
int json_lines_file(const std::uint8_t* data, std::size_t size);
int text_file(const std::uint8_t* data, std::size_t size);
int npy_file(const std::uint8_t* data, std::size_t size);
int ipc_file(const std::uint8_t* data, std::size_t size);

struct DatasetTarget {
  std::string_view name;
  int (*run)(const std::uint8_t* data, std::size_t size);
};
[[nodiscard]] const std::vector<DatasetTarget>& dataset_targets();

}  // namespace troupe::fuzz
