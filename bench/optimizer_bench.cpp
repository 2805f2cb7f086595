// An optimizer step's cost beside what memory allows: AdamW over 33.5 M parameters must read 16 bytes a parameter and write 12.
//
//   optimizer_bench [--json FILE]   all figures (about 40 s), a table and FILE
//
// The limit is measured in the same run, turn by turn: a loop that reads four streams and writes three of them, and computes
// next to nothing. Disk's limit is a plain read and write of as many bytes of state, with the same chunks.
#include "control_figures.hpp"

#include <io/async_io.hpp>
#include <io/page_buffer.hpp>
#include <optim/scratch_file.hpp>

#include <troupe/errors.hpp>
#include <troupe/optimizer.hpp>

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace {

using namespace troupe;
using bench::now_s;
using Json = nlohmann::ordered_json;

constexpr std::int64_t kParams = 33'554'432;
constexpr int kRuns = 7;

/// Four streams read, three written.
void touch(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float d = g[i];
    m[i] += d;
    v[i] += d;
    p[i] += d;
  }
}

double seconds(const std::function<void()>& work) {
  const auto begin = now_s();
  work();
  return now_s() - begin;
}

struct Limit {
  at::Tensor p = at::zeros({kParams}), g = at::randn({kParams}), m = at::zeros({kParams}), v = at::zeros({kParams});
  [[nodiscard]] double run() const {
    return seconds([&] { touch(p.data_ptr<float>(), g.data_ptr<float>(), m.data_ptr<float>(), v.data_ptr<float>(), kParams); });
  }
};

/// AdamW over kParams parameters as `num_pieces` pieces: beside each other in one buffer, or apart.
struct Trainee {
  at::Tensor flat = at::randn({kParams}), flat_grad = at::randn({kParams});
  std::unique_ptr<AdamW> optimizer;

  Trainee(int num_pieces, bool beside, const Offload& offload) {
    std::vector<at::Tensor> pieces;
    const auto size = kParams / num_pieces;
    for (int i = 0; i < num_pieces; ++i) {
      const auto length = i + 1 < num_pieces ? size : kParams - i * size;
      const auto values = flat.narrow(0, i * size, length), grads = flat_grad.narrow(0, i * size, length);
      pieces.push_back((beside ? values : values.clone()).detach().requires_grad_(true));
      pieces.back().mutable_grad() = beside ? grads : grads.clone();
    }
    if (!beside) flat = flat_grad = at::Tensor{};
    optimizer = std::make_unique<AdamW>(std::move(pieces), AdamWOptions{.lr = 1e-4});
    optimizer->set_offload(offload, 0);
    optimizer->step();  // makes the state
  }
};

/// Reads and writes as much as a step on disk does, through the page cache or past it, nothing else.
double disk_s(const Offload& offload) {
  detail::ScratchFile file{offload.path, 0};
  auto io = detail::make_uring_io(file.fd(), 2);
  if (!io) io = detail::make_thread_io(file.fd(), 2);
  const std::int64_t bytes = kParams * 8, chunk = offload.chunk_bytes;
  file.reserve(bytes);
  const detail::PageBuffer in{static_cast<std::size_t>(chunk)}, out{static_cast<std::size_t>(chunk)};
  const auto pass = [&] {
    for (std::int64_t at = 0; at < bytes; at += chunk) {
      io->begin(0, detail::AsyncIo::Kind::Read, in.data(), static_cast<std::size_t>(chunk), at);
      io->begin(1, detail::AsyncIo::Kind::Write, out.data(), static_cast<std::size_t>(chunk), at == 0 ? bytes - chunk : at - chunk);
      for (const int ticket : {0, 1}) file.check(io->wait(ticket), "moved");
    }
  };
  pass();  // the file's extents
  return seconds(pass);
}

struct Case {
  std::string name;
  int num_pieces;
  bool beside;
  Offload offload;
  double least_ratio;
};

Json measure(const Case& c) {
  const at::NoGradGuard no_grad;
  Trainee trainee{c.num_pieces, c.beside, c.offload};
  const bool disk = c.offload.place == Offload::Place::Disk;
  std::vector<double> ours, limits, ratios;
  const Limit limit;
  for (int run = 0; run < (disk ? 3 : kRuns); ++run) {
    limits.push_back(disk ? disk_s(c.offload) : limit.run());
    ours.push_back(seconds([&] { trainee.optimizer->step(); }));
    ratios.push_back(limits.back() / ours.back());
  }
  const bench::Goal goal{"ns/param", 1e9 * bench::median(limits) / kParams, disk ? "reading and writing the state" : "memory limit, 28 bytes a parameter", false,
                         c.least_ratio};
  return bench::figure(c.name, 1e9 * bench::median(ours) / kParams, goal, ours.size(), bench::median(ratios));
}

int run_all(const std::string& file) {
  at::set_num_threads(1);
  const Offload none{};
  const Offload host{.place = Offload::Place::Host, .path = {}};
  const Offload disk{.place = Offload::Place::Disk, .path = std::filesystem::temp_directory_path()};
  auto figures = Json::array();
  for (const auto& c : {Case{"optimizer_adamw_flat", 1, true, none, 0.8}, Case{"optimizer_adamw_200_pieces", 200, true, none, 0.8},
                        Case{"optimizer_adamw_200_apart", 200, false, none, 0.8}, Case{"optimizer_adamw_host", 200, true, host, 0.6},
                        Case{"optimizer_adamw_disk", 200, true, disk, 0.6}}) {
    figures.push_back(measure(c));
  }
  if (!file.empty() && !(std::ofstream{file} << figures.dump(1) << "\n").flush()) throw Failure{Errc::StorageUnavailable, file + " cannot be written"};
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.empty()) return run_all("");
    if (words.size() == 2 && words[0] == "--json") return run_all(words[1]);
    std::cerr << "usage: optimizer_bench [--json FILE]\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "optimizer_bench: " << error.what() << "\n";
    return 1;
  }
}
