#pragma once

#include "layout.hpp"
#include "rank_file.hpp"

#include <troupe/checkpoint_files.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace troupe::detail {

/// What one rank writes, by file and offset. Borrows the part's bytes; headers and index files are its own.
struct PartPlan {
  struct Piece {
    std::uint64_t begin = 0;  ///< in the file
    std::span<const std::byte> bytes;
    [[nodiscard]] std::uint64_t end() const noexcept { return begin + bytes.size(); }
  };
  struct PlannedFile {
    std::string name;
    std::uint64_t size = 0;     ///< of the whole file
    std::vector<Piece> pieces;  ///< by offset, none empty, none overlapping
  };
  std::vector<PlannedFile> files;  ///< that this rank writes to
  std::vector<Layout> layouts;     ///< by SharedTensorFile; own the headers that pieces point to
  RankFile record;                 ///< `written` is filled by writing
  std::uint64_t tensor_bytes = 0;
};

/// Throws Failure{InvalidArgument} naming stem and tensor: ranges that overlap or leave their tensor, a rank out of range.
[[nodiscard]] PartPlan plan_part(const CheckpointPart& part);

/// Pieces that touch, together: what is cut into segments.
struct Run {
  std::span<const PartPlan::Piece> pieces;
  [[nodiscard]] std::uint64_t begin() const noexcept { return pieces.front().begin; }
  [[nodiscard]] std::uint64_t end() const noexcept { return pieces.back().end(); }
};
[[nodiscard]] std::vector<Run> runs_of(std::span<const PartPlan::Piece> pieces);

/// Writes what is planned into `directory`, then the rank file; all durable when it returns.
void write_plan(const std::filesystem::path& directory, PartPlan& plan, FileSystem& file_system);

}  // namespace troupe::detail
