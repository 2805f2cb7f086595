// all_reduce between two hosts of two ranks beside LibTorch's flat Gloo and ours without encryption. The hosts are network namespaces
// joined by a veth pair (needs root), the ranks this program again: paired, interleaved repetitions, medians. `hosts_bench [--json FILE]`
#include "host_links.hpp"
#include "rank_rows.hpp"

#include <troupe/c10d.hpp>
#include <troupe/host_group.hpp>
#include <troupe/local_groups.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstring>
#include <functional>
#include <numeric>
#include <thread>

namespace {

using namespace troupe;
using namespace troupe::bench;
using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr int kHosts = 2, kRanksOfAHost = 2, kRanks = kHosts * kRanksOfAHost;
constexpr int kEncryptedFd = 40, kPlainFd = 41;
constexpr std::size_t kLargest = std::size_t{16} << 20;
constexpr std::chrono::seconds kTimeout{60};

std::string address_of(int host) { return "10.213.7." + std::to_string(host + 1); }

/// Everyone's `text`, by files in `directory`.
std::vector<std::string> exchange(const fs::path& directory, const std::string& what, int rank, const std::string& text) {
  const auto file = [&](int r) { return directory / (what + "." + std::to_string(r)); };
  std::ofstream{directory / ("new-" + what + std::to_string(rank))} << text << std::flush;
  fs::rename(directory / ("new-" + what + std::to_string(rank)), file(rank));
  std::vector<std::string> all(kRanks);
  for (int r = 0; r < kRanks; ++r) {
    for (const auto until = Clock::now() + kTimeout; !fs::exists(file(r)) && Clock::now() < until;) std::this_thread::sleep_for(std::chrono::milliseconds{5});
    std::ifstream{file(r)} >> all[static_cast<std::size_t>(r)];
  }
  return all;
}

std::unique_ptr<Communicator> join(int fd, int rank, const fs::path& directory, bool plain) {
  const std::vector<int> ranks_on(kRanks / kRanksOfAHost, kRanksOfAHost);
  std::vector<int> names(kRanks);
  std::iota(names.begin(), names.end(), 0);
  const auto meeting = troupe::detail::open_meeting({troupe::detail::HostTopology{ranks_on, rank, names}, address_of(rank / kRanksOfAHost),
                                             std::make_shared<const troupe::detail::TlsKey>(std::string(32, 'b')), "", plain});
  const auto everyone = exchange(directory, plain ? "plain" : "tls", rank, meeting->endpoint());
  std::vector<std::string> endpoints;
  for (int host = 0; host < kRanks / kRanksOfAHost; ++host) endpoints.push_back(everyone[static_cast<std::size_t>(host * kRanksOfAHost + rank % kRanksOfAHost)]);
  return meeting->join(endpoints, SharedGroup::join(fd, rank % kRanksOfAHost), kTimeout);
}

/// Bytes that this host has sent on the wire, as its kernel counts them.
double host_sent_bytes() {
  double bytes = 0;
  std::ifstream{"/sys/class/net/wire/statistics/tx_bytes"} >> bytes;
  return bytes;
}

struct Case {
  std::size_t bytes;
  int many;
  double goal;
};
constexpr Case kCases[] = {{1U << 10, 50, 1}, {64U << 10, 50, 1}, {1U << 20, 40, 1.7}, {kLargest, 8, 1.7}};

int be_rank(int rank, const fs::path& directory) {
  const auto tls = join(kEncryptedFd, rank, directory, false), plain = join(kPlainFd, rank, directory, true);
  const auto gloo = make_gloo_backend(rank, kRanks, directory, kTimeout, address_of(rank / kRanksOfAHost));
  const auto memory = tls->allocate(kLargest), plain_memory = plain->allocate(kLargest);
  auto tensor = at::ones({static_cast<std::int64_t>(kLargest / 4)});
  const auto reduce = [](Communicator& group, void* data, std::size_t bytes) { group.all_reduce({data, bytes, DType::F32}, ReduceOp::Sum).wait().or_throw(); };
  constexpr std::size_t runs = 7;
  for (const auto& one : kCases) {
    std::vector<double> ours, unencrypted, theirs, ours_sent, theirs_sent;
    const auto measure = [&](std::vector<double>& times, std::vector<double>* sent, const std::function<void()>& body) {
      plain->barrier().wait().or_throw();
      const auto before = host_sent_bytes();
      times.push_back(time_us(one.many, body));
      plain->barrier().wait().or_throw();
      if (sent) sent->push_back((host_sent_bytes() - before) / one.many);
    };
    for (std::size_t k = 0; k < runs + 1; ++k) {  // the first is to warm up
      measure(ours, &ours_sent, [&] { reduce(*tls, memory.get(), one.bytes); });
      measure(unencrypted, nullptr, [&] { reduce(*plain, plain_memory.get(), one.bytes); });
      measure(theirs, &theirs_sent, [&] {
        std::vector<at::Tensor> tensors{tensor.narrow(0, 0, static_cast<std::int64_t>(one.bytes / 4))};
        gloo->allreduce(tensors)->wait();
      });
    }
    if (rank != 0) continue;
    for (auto* v : {&ours, &unencrypted, &theirs, &ours_sent, &theirs_sent}) v->erase(v->begin());
    const auto figure = "hosts_all_reduce_" + size_name(one.bytes);
    print_row(figure, median(ours), median(theirs), "gloo, flat, in the clear", "us", one.goal, runs);
    print_row(figure + "_in_the_clear", median(unencrypted), median(theirs), "gloo, flat, in the clear", "us", one.goal, runs);
    print_row(figure + "_limit", median(ours), median(unencrypted), "ours without encryption", "us", 0.5, runs);
    if (one.bytes < (1U << 20)) continue;
    print_row(figure + "_sent_by_a_host", median(ours_sent), median(theirs_sent), "gloo, flat", "bytes", 1.4, runs);
    print_row(figure + "_sent_beside_least", median(ours_sent), static_cast<double>(one.bytes), "each byte once", "bytes", 0.97, runs);
  }
  plain->barrier().wait().or_throw();
  return 0;
}

int run(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const auto& a : command) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  int status = 0;
  if (posix_spawnp(&pid, argv[0], nullptr, nullptr, argv.data(), environ) != 0 || waitpid(pid, &status, 0) != pid) return -1;
  return status;
}

/// Two namespaces and the wire between them, gone at the end.
class TwoHosts {
 public:
  TwoHosts() {
    const std::vector<std::vector<std::string>> commands{
        {"ip", "netns", "add", name(0)},
        {"ip", "netns", "add", name(1)},
        {"ip", "link", "add", "wire", "netns", name(0), "type", "veth", "peer", "name", "wire", "netns", name(1)}};
    for (const auto& command : commands) made_ = made_ && run(command) == 0;
    for (int h = 0; h < kHosts && made_; ++h) {
      made_ = run({"ip", "-n", name(h), "addr", "add", address_of(h) + "/24", "dev", "wire"}) == 0 &&
              run({"ip", "-n", name(h), "link", "set", "wire", "up"}) == 0 && run({"ip", "-n", name(h), "link", "set", "lo", "up"}) == 0;
    }
  }
  ~TwoHosts() {
    for (int h = 0; h < kHosts; ++h)
      if (geteuid() == 0) (void)run({"ip", "netns", "del", name(h)});
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;
  [[nodiscard]] bool made() const { return made_; }
  [[nodiscard]] static std::string name(int host) { return "troupe-bench-" + std::to_string(getpid()) + "-" + std::to_string(host); }

 private:
  bool made_ = geteuid() == 0;
};

std::vector<nlohmann::ordered_json> measure() {
  const MeetingPlace place;
  const auto self = fs::read_symlink("/proc/self/exe").string();
  std::vector<std::unique_ptr<SharedGroup>> tls, plain;
  std::vector<RankCommand> ranks;
  for (int h = 0; h < kHosts; ++h) {
    tls.push_back(SharedGroup::create(kRanksOfAHost, kTimeout));
    plain.push_back(SharedGroup::create(kRanksOfAHost, kTimeout));
    for (int r = h * kRanksOfAHost; r < (h + 1) * kRanksOfAHost; ++r)
      ranks.push_back({{"ip", "netns", "exec", TwoHosts::name(h), self, "--rank", std::to_string(r), place.path},
                       {{tls.back()->fd(), kEncryptedFd}, {plain.back()->fd(), kPlainFd}}});
  }
  return rows_of(ranks);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 4 && std::strcmp(argv[1], "--rank") == 0) return be_rank(std::stoi(argv[2]), argv[3]);
    const TwoHosts hosts;
    if (!hosts.made()) throw Failure{Errc::Unsupported, "needs root and `ip netns`, to make two hosts of network namespaces"};
    show_rows(measure(), argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "hosts_bench: %s\n", error.what());
    return 1;
  }
}
