#include "deepspeed_files.hpp"

#include <charconv>
#include <map>
#include <optional>
#include <troupe/errors.hpp>

#include "flatten.hpp"
#include "mapped_file.hpp"

namespace troupe::detail {
namespace {

namespace fs = std::filesystem;

PickleOptions options() {
  PickleOptions out;
  out.data_classes = {"deepspeed.", "argparse.Namespace"};
  return out;
}

/// "bf16_zero_pp_rank_3_mp_rank_00_optim_states.pt" → 3.
std::optional<std::size_t> rank_of(std::string_view file, std::string_view ending,
                                   const fs::path& directory) {
  if (file.starts_with("bf16_")) file.remove_prefix(5);
  constexpr std::string_view begin = "zero_pp_rank_";
  if (!file.starts_with(begin) || !file.ends_with(ending)) return std::nullopt;
  file.remove_prefix(begin.size());
  std::size_t rank = 0;
  const auto [last, error] = std::from_chars(file.data(), file.data() + file.size(), rank);
  if (error != std::errc{}) return std::nullopt;
  const std::string_view rest{last, static_cast<std::size_t>(file.data() + file.size() - last)};
  if (rest != "_mp_rank_00" + std::string(ending)) {
    throw Failure{
        Errc::Unsupported,
        (directory / file).string() +
            ": belongs to a checkpoint with tensor or expert parallelism, which is not read"};
  }
  return rank;
}

std::map<std::size_t, fs::path> files_by_rank(const fs::path& directory, std::string_view ending) {
  std::map<std::size_t, fs::path> out;
  for (const auto& entry : fs::directory_iterator{directory}) {
    if (const auto rank = rank_of(entry.path().filename().string(), ending, directory))
      out[*rank] = entry.path();
  }
  return out;
}

fs::path follow_latest(const fs::path& directory) {
  if (has_deepspeed_files(directory)) return directory;
  const auto latest = directory / "latest";
  const auto mapped = map_private(latest);
  std::string tag{reinterpret_cast<const char*>(mapped.bytes.data()),
                  std::min<std::size_t>(mapped.bytes.size(), 1000)};
  while (!tag.empty() && (tag.back() == '\n' || tag.back() == '\r' || tag.back() == ' '))
    tag.pop_back();
  if (!is_plain_file_name(tag))
    throw Failure{Errc::FileCorrupt, latest.string() + ": does not name a folder beside it"};
  if (!fs::is_directory(directory / tag) || !has_deepspeed_files(directory / tag))
    throw Failure{Errc::FileNotFound, (directory / tag).string() +
                                          ": has no ZeRO optim_states files, but " +
                                          latest.string() + " names it"};
  return directory / tag;
}

/// ZeroStageEnum(2), or the number.
int stage_of(const PickleValue& value) {
  const auto number = value.is(PickleKind::Object) ? value.arguments()[0] : value;
  if (number.is(PickleKind::String)) {
    const auto text = number.text();
    return text == "optimizer_states" ? 1 : text == "gradients" ? 2 : text == "weights" ? 3 : 0;
  }
  const auto stage = number.integer();
  return stage >= 1 && stage <= 3 ? static_cast<int>(stage) : 0;
}

std::int64_t partitions(const PickleValue& value) {
  if (value.is(PickleKind::Int)) return value.integer();
  std::int64_t most = 0;
  for (std::size_t i = 0; i < value.size(); ++i) most = std::max(most, value[i].integer());
  return most;
}

}  // namespace

bool has_deepspeed_files(const fs::path& directory) {
  if (!fs::is_directory(directory)) return false;
  for (const auto& entry : fs::directory_iterator{directory}) {
    if (entry.path().filename().string().ends_with("_optim_states.pt")) return true;
  }
  return false;
}

DeepSpeedFiles open_deepspeed(const fs::path& where) {
  if (!fs::is_directory(where))
    throw Failure{Errc::FileNotFound, where.string() + ": no such directory"};
  const auto directory = follow_latest(where);
  DeepSpeedFiles out;
  const auto files = files_by_rank(directory, "_optim_states.pt");
  if (files.empty())
    throw Failure{Errc::Unsupported,
                  directory.string() + ": its optim_states files are not those of ZeRO"};
  for (const auto& [rank, file] : files) {
    if (rank != out.optimizers.size())
      throw Failure{Errc::FileNotFound, directory.string() +
                                            ": lacks the optim_states file of rank " +
                                            std::to_string(out.optimizers.size())};
    out.optimizers.push_back(read_torch_file(file, options()));
    out.names.push_back(file.string());
    const auto stage = stage_of(out.state(rank).at("zero_stage"));
    if (stage == 0 || (rank > 0 && stage != out.stage))
      throw Failure{Errc::FileCorrupt,
                    file.string() + ": its zero_stage is not 1, 2 or 3, or not that of rank 0"};
    out.stage = stage;
    if (const auto count = partitions(out.state(rank).at("partition_count"));
        count != static_cast<std::int64_t>(files.size())) {
      throw Failure{Errc::FileNotFound, directory.string() + ": has optim_states files of " +
                                            std::to_string(files.size()) +
                                            " ranks, but was written by " + std::to_string(count)};
    }
  }
  if (out.stage < 3) {
    out.models.push_back(read_torch_file(directory / "mp_rank_00_model_states.pt", options()));
    return out;
  }
  for (const auto& [rank, file] : files_by_rank(directory, "_model_states.pt")) {
    if (rank == out.models.size()) out.models.push_back(read_torch_file(file, options()));
  }
  if (out.models.size() != files.size())
    throw Failure{Errc::FileNotFound, directory.string() +
                                          ": lacks the model_states file of rank " +
                                          std::to_string(out.models.size())};
  return out;
}

}  // namespace troupe::detail
