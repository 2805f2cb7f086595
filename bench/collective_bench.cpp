// Collectives of threads and of processes beside LibTorch's Gloo (loopback, the same processes) and memcpy: paired,
// interleaved repetitions, medians. `collective_bench [--json FILE]`
#include "rank_rows.hpp"

#include <troupe/c10d.hpp>
#include <troupe/local_groups.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <sched.h>

#include <cstring>
#include <thread>

namespace {

using namespace troupe;
using namespace troupe::bench;

constexpr int kGroupFd = 40;
constexpr std::size_t kLargest = std::size_t{64} << 20;
constexpr const char* kCollectives[] = {"all_reduce", "reduce_scatter", "all_gather"};
constexpr std::size_t kSizes[] = {1U << 10, 16U << 10, 64U << 10, 1U << 20, 4U << 20, 16U << 20, kLargest};

/// Buffers of one rank, in memory that the peers reach.
struct Buffers {
  Communicator& group;
  std::shared_ptr<void> whole = group.allocate(kLargest), part = group.allocate(kLargest);
  Buffers(Communicator& g) : group(g) {
    std::memset(whole.get(), 0, kLargest);
    std::memset(part.get(), 0, kLargest);
  }
  void run(int collective, std::size_t bytes) const {
    const Buffer all{whole.get(), bytes, DType::F32}, mine{part.get(), bytes / static_cast<std::size_t>(group.size()), DType::F32};
    (collective == 0   ? group.all_reduce(all, ReduceOp::Sum)
     : collective == 1 ? group.reduce_scatter(all, mine, ReduceOp::Sum)
                       : group.all_gather(mine, all))
        .wait()
        .or_throw();
  }
};

struct GlooBuffers {
  c10d::Backend& gloo;
  at::Tensor whole = at::ones({static_cast<std::int64_t>(kLargest / 4)}), part = whole.clone();
  void run(int collective, std::size_t bytes) const {
    const auto n = static_cast<std::int64_t>(bytes / 4);
    auto all = whole.narrow(0, 0, n), mine = part.narrow(0, 0, n / gloo.getSize());
    std::vector<at::Tensor> tensors{all};
    (collective == 0   ? gloo.allreduce(tensors)
     : collective == 1 ? gloo._reduce_scatter_base(mine, all)
                       : gloo._allgather_base(all, mine))
        ->wait();
  }
};

/// Every rank has a core of its own where there are enough, as `ScalingConfig::pin_threads` gives it.
void pin(int rank) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(static_cast<unsigned>(rank) % std::thread::hardware_concurrency(), &cores);
  (void)sched_setaffinity(0, sizeof cores, &cores);
}

/// A second rank thread beside the caller, doing what the caller does.
class Partner {
 public:
  explicit Partner(int size) : seats_(make_thread_group(size, std::chrono::seconds{60})), mine_(*seats_[0]) {
    for (int r = 1; r < size; ++r)
      threads_.emplace_back([this, r] {
        pin(r);
        const Buffers buffers(*seats_[static_cast<std::size_t>(r)]);
        std::int64_t order[3];
        while (true) {
          buffers.group.broadcast({order, sizeof order, DType::I64}, 0).wait().or_throw();
          if (order[0] < 0) return;
          for (std::int64_t i = 0; i < order[2]; ++i) buffers.run(static_cast<int>(order[0]), static_cast<std::size_t>(order[1]));
        }
      });
  }
  ~Partner() {
    send(-1, 0, 0);
    for (auto& thread : threads_) thread.join();
  }
  Partner(const Partner&) = delete;
  Partner& operator=(const Partner&) = delete;
  double time(int collective, std::size_t bytes, int iterations) {
    send(collective, static_cast<std::int64_t>(bytes), iterations);
    return time_us(iterations, [&] { mine_.run(collective, bytes); });
  }

 private:
  void send(std::int64_t collective, std::int64_t bytes, std::int64_t iterations) {
    std::int64_t order[3] = {collective, bytes, iterations};
    seats_[0]->broadcast({order, sizeof order, DType::I64}, 0).wait().or_throw();
  }
  std::vector<std::unique_ptr<Communicator>> seats_;
  Buffers mine_;
  std::vector<std::thread> threads_;
};

int be_rank(int rank, int size, const std::string& directory) {
  const auto group = SharedGroup::join(kGroupFd, rank);
  const auto cores = std::thread::hardware_concurrency();  // before pinning: Gloo's own threads go where they like
  const auto gloo = make_gloo_backend(rank, size, directory, std::chrono::seconds{60});
  const Buffers ours(*group);
  const GlooBuffers theirs{*gloo};
  std::vector<char> from(kLargest, 1), to(kLargest, 2);
  if (static_cast<unsigned>(size) <= cores) pin(rank);
  std::unique_ptr<Partner> threads = rank == 0 ? std::make_unique<Partner>(size) : nullptr;
  for (int c = 0; c < 3; ++c) {
    for (const auto bytes : kSizes) {
      if (size > 2 && bytes > (16U << 20)) continue;
      const std::size_t runs = bytes >= (16U << 20) ? 5 : 9;
      const int many = bytes <= (64U << 10) ? 300 : bytes <= (4U << 20) ? 12 : 2, few = bytes <= (64U << 10) ? 30 : bytes <= (4U << 20) ? 4 : 1;
      std::vector<double> processes, peers, copies, together;
      for (std::size_t k = 0; k < runs + 1; ++k) {  // the first is to warm up
        group->barrier().wait().or_throw();
        if (threads) together.push_back(threads->time(c, bytes, many));
        if (rank == 0) copies.push_back(time_us(many, [&] { std::memcpy(to.data(), from.data(), bytes); asm volatile("" ::: "memory"); }));
        group->barrier().wait().or_throw();
        processes.push_back(time_us(many, [&] { ours.run(c, bytes); }));
        group->barrier().wait().or_throw();
        peers.push_back(time_us(few, [&] { theirs.run(c, bytes); }));
      }
      if (rank != 0) continue;
      for (auto* v : {&processes, &peers, &copies, &together}) v->erase(v->begin());
      const auto figure = [&](const std::string& where) { return std::string{"collective_"} + kCollectives[c] + "_" + where + "_" + size_name(bytes); };
      const auto many_ranks = size > 2 ? std::to_string(size) : std::string{};
      const double goal = size > 2 ? 1 : bytes == 1024 ? 50 : 8;
      print_row(figure("threads" + many_ranks), median(together), median(peers), "gloo (LibTorch, loopback)", "us", goal, runs);
      print_row(figure("processes" + many_ranks), median(processes), median(peers), "gloo (LibTorch, loopback)", "us", goal, runs);
      if (size == 2 && bytes >= (1U << 20))  // the limit: a copy moves the bytes once, a collective more often
        print_row(figure("threads") + "_memcpy", median(together), median(copies), "memcpy, one thread", "us", 0.25, runs);
    }
  }
  group->barrier().wait().or_throw();
  return 0;
}

std::vector<nlohmann::ordered_json> run(int size) {
  const MeetingPlace place;
  const auto group = SharedGroup::create(size, std::chrono::seconds{60});
  std::vector<RankCommand> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back({{"/proc/self/exe", "--rank", std::to_string(r), std::to_string(size), place.path}, {{group->fd(), kGroupFd}}});
  return rows_of(ranks);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 5 && std::strcmp(argv[1], "--rank") == 0) return be_rank(std::stoi(argv[2]), std::stoi(argv[3]), argv[4]);
    auto rows = nlohmann::ordered_json::array();
    for (const int size : {2, 4})
      for (auto& row : run(size)) rows.push_back(std::move(row));
    show_rows(rows, argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "collective_bench: %s\n", error.what());
    return 1;
  }
}
