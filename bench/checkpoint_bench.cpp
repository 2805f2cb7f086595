// What saving and loading 1.5 GB of training state by two ranks costs beside what disk and memory allow.
//
//   checkpoint_bench [--json FILE] [--dir DIR] [--runs N]   all figures (a minute), a table and FILE
//   checkpoint_bench --case save [--dir DIR] [--runs N]     the save alone, beside a Python peer: {"save_gb_s"}
//
// A model of 125 tensors of 4 MB and two optimizer moments of each, whole tensors and flat halves by turns as ZeRO cuts them. Limits are
// measured in the same run, turn by turn: writes of as many bytes into one file past the cache with the same calls, the same as dd writes
// them, reads of the same files, a memcpy.
#include "control_figures.hpp"

#include <io/async_io.hpp>
#include <io/page_buffer.hpp>

#include <troupe/checkpoint_files.hpp>
#include <troupe/errors.hpp>
#include <troupe/run_storage.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <random>
#include <thread>

namespace {

using namespace troupe;
using bench::now_s;
using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int kRanks = 2;
constexpr std::size_t kTensors = 125;
constexpr std::uint64_t kTensorBytes = 4'000'000;
constexpr std::size_t kChunk = 4 << 20;
constexpr int kUnderWay = 8;  // accesses at once, as a save has
constexpr double kTotal = 3.0 * kTensors * kTensorBytes;

double seconds(const std::function<void()>& work) {
  const auto begin = now_s();
  work();
  return now_s() - begin;
}

/// `work(rank)` on a thread each.
double by_ranks(const std::function<void(int)>& work) {
  return seconds([&] {
    std::vector<std::jthread> ranks;
    for (int rank = 0; rank < kRanks; ++rank) ranks.emplace_back([&, rank] { work(rank); });
  });
}

/// Three flat buffers (weights, two moments), as an optimizer keeps them.
struct State {
  std::vector<std::vector<std::byte>> flat{3, std::vector<std::byte>(kTensors* kTensorBytes + 64)};
  std::vector<TensorSpec> model, optimizer;

  State() {
    for (std::size_t i = 0; i < kTensors; ++i) {
      const auto name = "layer." + std::to_string(i) + ".weight";
      model.push_back({name, SafetensorsDtype::F32, {1000, 1000}});
      for (const char* moment : {"exp_avg.", "exp_avg_sq."}) optimizer.push_back({moment + name, SafetensorsDtype::F32, {1000, 1000}});
    }
    std::uint64_t x = 1;
    for (auto& bytes : flat) {
      for (std::size_t at = 0; at + 8 <= bytes.size(); at += 8) {
        x = x * 6364136223846793005ULL + 1442695040888963407ULL;
        std::memcpy(bytes.data() + at, &x, 8);
      }
    }
  }

  /// The rank's half of every buffer, tensor by tensor; the border falls inside a tensor.
  template <class Take>
  void ranges(int rank, std::size_t buffer, Take&& take) {
    const auto all = kTensors * kTensorBytes, begin = all / kRanks * static_cast<std::uint64_t>(rank), end = begin + all / kRanks;
    for (std::size_t i = begin / kTensorBytes; i < kTensors && i * kTensorBytes < end; ++i) {
      const auto from = std::max(begin, i * kTensorBytes), to = std::min(end, (i + 1) * kTensorBytes);
      take(i, from - i * kTensorBytes, std::span{flat[buffer]}.subspan(from, to - from));
    }
  }

  CheckpointPart part(int rank) {
    CheckpointPart part;
    part.rank = rank;
    part.num_writers = kRanks;
    part.attempt = 1;
    part.state.emplace();
    part.files = {{"model", model, {{"format", "pt"}}, {}, 0}, {"optimizer", optimizer, {}, {}, 0}};
    ranges(rank, 0, [&](std::size_t i, std::uint64_t begin, std::span<std::byte> bytes) {
      part.files[0].mine.push_back({i, begin, bytes});
    });
    for (std::size_t moment : {0, 1}) {
      ranges(rank, 1 + moment, [&](std::size_t i, std::uint64_t begin, std::span<std::byte> bytes) {
        part.files[1].mine.push_back({2 * i + moment, begin, bytes});
      });
    }
    return part;
  }

  void load(const fs::path& directory, int rank) {
    const CheckpointReader reader{directory};
    std::vector<ReadRange> model_ranges, optimizer_ranges;
    ranges(rank, 0, [&](std::size_t i, std::uint64_t begin, std::span<std::byte> bytes) {
      model_ranges.push_back({model[i].name, begin, bytes});
    });
    for (std::size_t moment : {0, 1}) {
      ranges(rank, 1 + moment, [&](std::size_t i, std::uint64_t begin, std::span<std::byte> bytes) {
        optimizer_ranges.push_back({optimizer[2 * i + moment].name, begin, bytes});
      });
    }
    reader.read("model", model_ranges);
    reader.read("optimizer", optimizer_ranges);
  }
};

/// The disk's limit: each rank writes its half of one file past the cache, as many accesses of 4 MiB under way, and syncs.
double write_limit(const fs::path& file, const std::vector<detail::PageBuffer>& chunks) {
  const auto half = static_cast<std::int64_t>(kTotal / kRanks) / static_cast<std::int64_t>(kChunk) * static_cast<std::int64_t>(kChunk);
  const auto took = by_ranks([&](int rank) {
    const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0644);
    if (fd < 0 || ::fallocate(fd, 0, 0, half * kRanks) != 0) throw Failure{Errc::StorageUnavailable, file.string() + " cannot be made"};
    {
      auto io = detail::make_uring_io(fd, kUnderWay);
      if (!io) io = detail::make_thread_io(fd, kUnderWay);
      int ticket = 0;
      for (std::int64_t at = 0; at < half; at += static_cast<std::int64_t>(kChunk), ticket = (ticket + 1) % kUnderWay) {
        if (io->wait(ticket) != 0) throw Failure{Errc::StorageUnavailable, file.string() + " cannot be written"};
        io->begin(ticket, detail::AsyncIo::Kind::Write, chunks[static_cast<std::size_t>(kUnderWay * rank + ticket)].data(), kChunk,
                  rank * half + at);
      }
      for (ticket = 0; ticket < kUnderWay; ++ticket) (void)io->wait(ticket);
    }
    if (::fsync(fd) != 0) throw Failure{Errc::StorageUnavailable, file.string() + " cannot be synced"};
    ::close(fd);
  });
  return took * kTotal / static_cast<double>(half * kRanks);
}

/// As `dd bs=4M oflag=direct conv=fsync` writes: one access after the other, then a sync.
double dd_limit(const fs::path& file, const std::vector<detail::PageBuffer>& chunks) {
  const auto accesses = static_cast<std::size_t>(kTotal) / kChunk;
  const auto took = seconds([&] {
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0644);
    bool written = fd >= 0;
    for (std::size_t i = 0; i < accesses && written; ++i) written = ::write(fd, chunks[i % chunks.size()].data(), kChunk) == static_cast<ssize_t>(kChunk);
    if (!written || ::fsync(fd) != 0) throw Failure{Errc::StorageUnavailable, file.string() + " cannot be written"};
    ::close(fd);
  });
  return took * kTotal / static_cast<double>(accesses * kChunk);
}

const std::vector<std::string> kFiles{"model.safetensors", "optimizer.safetensors"};

void drop(const fs::path& directory) {
  for (const auto& entry : fs::recursive_directory_iterator{directory}) {
    const int fd = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

/// The limit of loading: two threads a rank, as ours, read the same files front to back and do nothing with them.
double read_limit(const fs::path& directory, const std::vector<detail::PageBuffer>& chunks) {
  constexpr int threads = 2 * kRanks;
  return seconds([&] {
    std::vector<std::jthread> readers;
    for (int reader = 0; reader < threads; ++reader) {
      readers.emplace_back([&, reader] {
        for (const auto& name : kFiles) {
          const int fd = ::open((directory / name).c_str(), O_RDONLY | O_CLOEXEC);
          const auto part = static_cast<std::int64_t>(fs::file_size(directory / name)) / threads;
          for (std::int64_t at = 0; at < part; at += static_cast<std::int64_t>(kChunk)) {
            const auto bytes = std::min<std::int64_t>(part - at, kChunk);
            if (::pread(fd, chunks[static_cast<std::size_t>(reader)].data(), static_cast<std::size_t>(bytes), reader * part + at) != bytes) std::exit(3);
          }
          ::close(fd);
        }
      });
    }
  });
}

/// The limit of a snapshot: a memcpy of each rank's tensors.
double copy_limit(State& state, std::vector<detail::PageBuffer>& into) {
  return by_ranks([&](int rank) {
    auto* at = into[static_cast<std::size_t>(rank)].data();
    for (std::size_t buffer = 0; buffer < 3; ++buffer) {
      state.ranges(rank, buffer, [&](std::size_t, std::uint64_t, std::span<std::byte> bytes) {
        std::memcpy(at, bytes.data(), bytes.size());
        at += bytes.size();
      });
    }
  });
}

/// Ours and a limit by turns, as GB/s.
struct Turns {
  std::vector<double> ours, limits, ratios;
  void add(double took, double limit) {
    ours.push_back(kTotal / took / 1e9);
    limits.push_back(kTotal / limit / 1e9);
    ratios.push_back(limit / took);
  }
  [[nodiscard]] Json figure(const std::string& name, const std::string& peer, double goal) const {
    return bench::figure(name, bench::median(ours), {"GB/s", bench::median(limits), peer, true, goal}, ours.size(), bench::median(ratios));
  }
};

Json measure_snapshot(State& state, int runs) {
  Turns turns;
  std::vector<SnapshotPool> pools(kRanks);
  for (auto& pool : pools) pool.reserve(static_cast<std::size_t>(kTotal / kRanks) + (64 << 20));
  std::vector<detail::PageBuffer> into;
  for (int rank = 0; rank < kRanks; ++rank) {
    into.emplace_back(static_cast<std::size_t>(kTotal / kRanks));
    std::memset(into.back().data(), 1, into.back().bytes());
  }
  const std::vector<CheckpointPart> parts{state.part(0), state.part(1)};
  for (int run = 0; run < 2 * runs; ++run) {
    const auto limit = copy_limit(state, into);
    std::vector<std::unique_ptr<PartSnapshot>> kept(kRanks);
    const auto took = by_ranks([&](int rank) {
      kept[static_cast<std::size_t>(rank)] =
          std::make_unique<PartSnapshot>(parts[static_cast<std::size_t>(rank)], pools[static_cast<std::size_t>(rank)]);
    });
    if (run > 0) turns.add(took, limit);
  }
  return turns.figure("checkpoint_snapshot", "memcpy of the state by as many threads", 1 / 1.3);
}

/// A run's directory below `where`, gone at the end.
struct Root {
  RunConfig config;
  fs::path path;
  explicit Root(const fs::path& where) {
    config.storage_path = where;
    config.name = "checkpoint_bench." + std::to_string(::getpid());
    path = where / config.name;
  }
  ~Root() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

/// Writes by both ranks at once, and the commit; seconds.
double save_s(RunStorage& storage, std::uint64_t index, const std::function<void(int, const fs::path&)>& write) {
  const auto directory = storage.path() / ".staging" / "save";
  return seconds([&] {
    by_ranks([&](int rank) { write(rank, directory); });
    (void)storage.commit({index, {}, {{0, directory.string()}, {1, directory.string()}}});
  });
}

int run_save(const fs::path& where, int runs) {
  State state;
  const Root root{where};
  RunStorage storage{root.config};
  const std::vector<CheckpointPart> parts{state.part(0), state.part(1)};
  std::vector<double> rates;
  for (int run = 0; run < runs; ++run) {
    const auto index = static_cast<std::uint64_t>(run);
    rates.push_back(kTotal / 1e9 / save_s(storage, index, [&](int rank, const fs::path& directory) {
                      write_part(directory, parts[static_cast<std::size_t>(rank)]);
                    }));
    storage.remove(index);
  }
  std::cout << Json{{"save_gb_s", bench::median(rates)}}.dump() << "\n";
  return 0;
}

/// Both ranks load the checkpoint at `path` from a cold cache, in turn with reading its files, then from a warm one.
void measure_loads(State& state, const fs::path& path, const std::vector<detail::PageBuffer>& chunks, bool limit_first, Turns& cold, Turns& warm) {
  const auto load = [&] { return by_ranks([&](int rank) { state.load(path, rank); }); };
  const auto read_cold = [&](bool ours) {
    drop(path);
    return ours ? load() : read_limit(path, chunks);
  };
  const auto first = read_cold(!limit_first), second = read_cold(limit_first);
  cold.add(limit_first ? second : first, limit_first ? first : second);
  (void)load();
  warm.add(load(), kTotal / 3e9);
}

int run_all(const std::string& json, const fs::path& where, int runs) {
  State state;
  auto figures = Json::array();
  figures.push_back(measure_snapshot(state, runs));
  std::vector<detail::PageBuffer> chunks;
  for (int i = 0; i < kUnderWay * kRanks; ++i) {
    chunks.emplace_back(kChunk);
    std::memcpy(chunks.back().data(), state.flat[0].data() + static_cast<std::size_t>(i) * kChunk, kChunk);
  }
  const Root root{where};
  const std::vector<CheckpointPart> parts{state.part(0), state.part(1)};
  Turns save, save_and_dd, snapshot_save, cold, warm;
  RunStorage storage{root.config};
  SnapshotPool pools[kRanks];
  const auto by = [&](const auto& limit) {
    const auto took = limit(root.path / "limit", chunks);
    fs::remove(root.path / "limit");
    return took;
  };
  for (int run = 0; run < runs; ++run) {
    const auto index = static_cast<std::uint64_t>(2 * run);
    double took[3] = {};
    for (int turn = run; turn < run + 3; ++turn) {  // the disk has moods: none of the three always comes first
      if (turn % 3 == 0) took[0] = by(write_limit);
      if (turn % 3 == 1) took[1] = by(dd_limit);
      if (turn % 3 == 2)
        took[2] = save_s(storage, index, [&](int rank, const fs::path& directory) { write_part(directory, parts[static_cast<std::size_t>(rank)]); });
    }
    save.add(took[2], took[0]);
    save_and_dd.add(took[2], took[1]);
    measure_loads(state, root.path / checkpoint_name(index), chunks, run % 2 == 0, cold, warm);
    storage.remove(index);
    std::vector<std::unique_ptr<PartSnapshot>> kept;
    for (int rank = 0; rank < kRanks; ++rank)
      kept.push_back(std::make_unique<PartSnapshot>(parts[static_cast<std::size_t>(rank)], pools[rank]));
    const auto limit = by(write_limit);
    snapshot_save.add(save_s(storage, index + 1,
                             [&](int rank, const fs::path& directory) { kept[static_cast<std::size_t>(rank)]->write(directory); }),
                      limit);
    storage.remove(index + 1);
  }
  figures.push_back(save.figure("checkpoint_save", "writes past the cache, as many bytes into one file, synced", 0.9));
  figures.push_back(save_and_dd.figure("checkpoint_save_vs_dd", "dd bs=4M oflag=direct conv=fsync", 0.9));
  figures.push_back(snapshot_save.figure("checkpoint_save_snapshot", "writes past the cache, as many bytes into one file, synced", 0.9));
  figures.push_back(cold.figure("checkpoint_load_cold", "reading the same files from a cold cache", 0.8));
  figures.push_back(warm.figure("checkpoint_load_cached", "limit", 1));
  if (!json.empty() && !(std::ofstream{json} << figures.dump(1) << "\n").flush())
    throw Failure{Errc::StorageUnavailable, json + " cannot be written"};
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string json;
  auto where = fs::temp_directory_path();
  int runs = 5;
  bool save_only = false;
  for (int i = 1; i < argc; i += 2) {
    const std::string word = argv[i];
    if (i + 1 < argc && word == "--json") json = argv[i + 1];
    else if (i + 1 < argc && word == "--dir") where = argv[i + 1];
    else if (i + 1 < argc && word == "--runs") runs = std::atoi(argv[i + 1]);
    else if (i + 1 < argc && word == "--case" && argv[i + 1] == std::string("save")) save_only = true;
    else return std::cerr << "usage: checkpoint_bench [--json FILE | --case save] [--dir DIR] [--runs N]\n", 2;
  }
  try {
    return save_only ? run_save(where, runs) : run_all(json, where, runs);
  } catch (const std::exception& error) {
    std::cerr << "checkpoint_bench: " << error.what() << "\n";
    return 1;
  }
}
