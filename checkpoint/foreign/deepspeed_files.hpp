#pragma once

#include <filesystem>
#include <string>
#include <troupe/foreign_pickle.hpp>
#include <vector>

namespace troupe::detail {

/// The files of one DeepSpeed checkpoint, opened and checked to belong together.
struct DeepSpeedFiles {
  int stage = 0;                       ///< 1, 2 or 3
  std::vector<PickleFile> optimizers;  ///< by rank
  std::vector<PickleFile> models;      ///< one up to stage 2, by rank in stage 3
  std::vector<std::string> names;      ///< of the optimizers' files

  [[nodiscard]] PickleValue state(std::size_t rank) const {
    return optimizers[rank].root.at("optimizer_state_dict");
  }
  [[nodiscard]] const std::string& what(std::size_t rank) const { return names[rank]; }
};

/// Whether the directory itself has optim_states files.
[[nodiscard]] bool has_deepspeed_files(const std::filesystem::path& directory);
/// Follows `latest`.
[[nodiscard]] DeepSpeedFiles open_deepspeed(const std::filesystem::path& directory);

}  // namespace troupe::detail
