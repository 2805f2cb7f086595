// make_run DIR: a run of three checkpoints that two ranks wrote, for the tests of `troupe checkpoint`.
// Report i has step 10·(i+1) and acc 0.5, 0.9, 0.7; w's first element is i, all else is equal.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <troupe/checkpoint_files.hpp>
#include <troupe/run_storage.hpp>

using namespace troupe;

namespace {

constexpr double scores[] = {0.5, 0.9, 0.7};

// w [6, 4] F32 is 0, 1, 2, …; its halves are of ranks 0 and 1. b [3] BF16 is 1, 2, 3 and of rank 0.
CheckpointPart part_of(int rank, std::uint64_t index, const std::vector<float>& w, const std::vector<std::uint16_t>& b) {
  CheckpointPart part;
  part.rank = rank;
  part.num_writers = 2;
  part.attempt = 1;
  const auto bytes = std::as_bytes(std::span{w});
  for (const auto* stem : {"model", "optimizer"}) {
    const std::string w_name = std::strcmp(stem, "model") == 0 ? "layer.w" : "exp_avg.layer.w";
    SharedTensorFile file{stem, {{w_name, SafetensorsDtype::F32, {6, 4}}, {w_name + ".bias", SafetensorsDtype::BF16, {3}}}, {{"format", "pt"}}, {}, 0};
    const auto half = bytes.size() / 2;
    file.mine.push_back({0, rank == 0 ? 0 : half, rank == 0 ? bytes.first(half) : bytes.subspan(half)});
    if (rank == 0) file.mine.push_back({1, 0, std::as_bytes(std::span{b})});
    part.files.push_back(std::move(file));
  }
  TrainState state;
  state.step = 10 * (static_cast<std::int64_t>(index) + 1);
  state.epoch = static_cast<std::int64_t>(index);
  state.world_size = 2;
  state.strategy = "zero3";
  state.learning_rates = {{0.001, 0.0005}};
  state.loaders = {{state.epoch, 5, 80, 7}};
  part.state = state;
  part.rank_state = {"random bytes", {{"mine", "abc"}}};
  return part;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto run = std::filesystem::absolute(argv[1]);
  RunConfig config;
  config.storage_path = run.parent_path();
  config.name = run.filename().string();
  RunStorage storage{config};
  Result result;
  result.path = run;
  for (std::uint64_t index = 0; index < 3; ++index) {
    std::vector<float> w(24);
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i);
    w[0] = static_cast<float>(index);
    const std::vector<std::uint16_t> b{0x3F80, 0x4000, 0x4040};
    const auto staged = run / ".staging" / ("shared_" + std::to_string(index));
    for (int rank = 0; rank < 2; ++rank) write_part(staged, part_of(rank, index, w, b));
    std::ofstream{staged / "config.json"} << R"({"hidden_size": 4, "torch_dtype": "float32"})";
    std::ofstream{staged / "vocab.txt"} << "[PAD]\nhello\n";
    ReportRecord report;
    report.attempt = 1;
    report.index = index;
    report.metrics = Metrics{{"acc", scores[index]}, {"epoch", static_cast<int>(index)}};
    storage.append(report);
    result.history.push_back(report);
    result.checkpoints.push_back(storage.commit({index, report.metrics, {{0, staged.string()}, {1, staged.string()}}}));
  }
  result.checkpoint = result.checkpoints.back();
  storage.finish(result);
  return 0;
}
