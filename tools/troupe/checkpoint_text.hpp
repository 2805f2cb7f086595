#pragma once

#include <troupe/checkpoint_files.hpp>
#include <troupe/metrics.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

// How `troupe checkpoint` prints things.

namespace troupe::tools {

/// "512 B", "1.4 MB", "13.2 GB": powers of 1000.
[[nodiscard]] std::string size_text(std::uint64_t bytes);
/// "just now", "12 min ago", "3 days ago".
[[nodiscard]] std::string age_text(std::filesystem::file_time_type time);
/// "acc=0.8125 epoch=2".
[[nodiscard]] std::string metrics_text(const Metrics& metrics);
/// "[30522, 384]"; "[]" for a scalar.
[[nodiscard]] std::string shape_text(const std::vector<std::uint64_t>& shape);
/// "1 file", "3 files".
[[nodiscard]] std::string count_text(std::uint64_t count, const std::string& what);
[[nodiscard]] std::uint64_t elements_of(const TensorSpec& tensor);
[[nodiscard]] std::uint64_t bytes_of(const TensorSpec& tensor);

/// Prints rows in columns, two spaces between them; cells of numbers (all but the first row's) are aligned to the right.
void print_table(const std::vector<std::vector<std::string>>& rows);

/// What the user may have meant by a path that does not exist: "; did you mean 'results/run'?", or "".
[[nodiscard]] std::string nearest_path(const std::filesystem::path& path);

/// Opens a checkpoint, or a plain Hugging Face directory. Throws Failure that says what else the directory is, if it is something.
[[nodiscard]] CheckpointReader open_checkpoint(const std::string& directory);
/// The checkpoint_… directories of a run, by number. Throws Failure that says what else the directory is.
[[nodiscard]] std::vector<std::filesystem::path> checkpoints_of_run(const std::string& directory);
[[nodiscard]] bool is_checkpoint(const std::filesystem::path& directory);

}  // namespace troupe::tools
