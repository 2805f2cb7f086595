#pragma once

#include "digest.hpp"
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
    std::vector<Segment> segments;  ///< of the pieces, where they were digested before
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
/// Where the segment that has `begin` ends.
[[nodiscard]] std::uint64_t segment_end(const Run& run, std::uint64_t begin);
/// Copies the file's bytes from `begin` on to all of `into`, past the processor's caches, and digests them on the way. `piece` has `begin`;
/// afterwards it has the byte behind the last, or is the one after the last.
void copy_and_digest(std::span<std::byte> into, std::uint64_t begin, const PartPlan::Piece*& piece, DigestStream& digest);

/// Writes what is planned into `directory`, then the rank file; all durable when it returns.
void write_plan(const std::filesystem::path& directory, PartPlan& plan, FileSystem& file_system);

}  // namespace troupe::detail
