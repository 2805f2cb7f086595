// Strangers at the meeting of hosts, connections that break, ranks that are killed.
#include "host_ranks.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <stdexcept>
#include <thread>

namespace troupe {
namespace {

using namespace testing_ranks;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

HostPlan plan_of(int rank, int size = 2, char key = 'k') {
  HostPlan plan;
  plan.ranks_on.assign(static_cast<std::size_t>(size), 1);
  plan.address = "127.0.0." + std::to_string(rank + 1);
  plan.key = std::string(32, key);
  return plan;
}

/// "" or what it threw.
std::future<std::string> join_later(HostMeeting& meeting, const std::vector<std::string>& endpoints, milliseconds timeout = milliseconds{5000}) {
  return std::async(std::launch::async, [&meeting, endpoints, timeout] {
    try {
      const auto group = meeting.join(endpoints, self_communicator(), timeout);
      group->barrier().wait().or_throw();
      return std::string{};
    } catch (const Failure& failure) {
      return std::string{name(failure.code())} + ": " + failure.what();
    }
  });
}

sockaddr_in address_of(const std::string& endpoint) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  const auto colon = endpoint.find(':');
  address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(endpoint.substr(colon + 1))));
  inet_pton(AF_INET, endpoint.substr(0, colon).c_str(), &address.sin_addr);
  return address;
}

int connect_to(const std::string& endpoint) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const auto address = address_of(endpoint);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  close(fd);
  return -1;
}

TEST(HostMeeting, ListensOnTheGivenAddressOnly) {
  const auto meeting = HostMeeting::open(plan_of(1), 1);
  EXPECT_THAT(meeting->endpoint(), testing::StartsWith("127.0.0.2:"));
  const int there = connect_to(meeting->endpoint());
  EXPECT_GE(there, 0);
  close(there);
  EXPECT_EQ(connect_to("127.0.0.1" + meeting->endpoint().substr(9)), -1);
}

TEST(HostMeeting, SaysThatAnAddressIsNoneOfThisHost) {
  auto plan = plan_of(0);
  plan.address = "192.0.2.7";
  try {
    (void)HostMeeting::open(plan, 0);
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.code(), Errc::StartFailed);
    EXPECT_THAT(failure.what(), HasSubstr("192.0.2.7"));
  }
  plan.address = "localhost";
  EXPECT_THROW((void)HostMeeting::open(plan, 0), Failure);
  plan = plan_of(0);
  plan.key = "short";
  EXPECT_THROW((void)HostMeeting::open(plan, 0), Failure);
}

TEST(HostMeeting, NamesTheRanksThatDidNotCome) {
  const auto meeting = HostMeeting::open(plan_of(1, 3), 1);
  EXPECT_THAT(join_later(*meeting, {"127.0.0.1:1", meeting->endpoint(), "127.0.0.3:1"}, milliseconds{200}).get(),
              AllOf(HasSubstr("DeadlinePassed"), HasSubstr("waited for ranks 0, 2, which did not come within 200 ms")));
}

TEST(HostMeeting, AnAbortEndsItAtOnce) {
  const auto meeting = HostMeeting::open(plan_of(1), 1);
  auto joined = join_later(*meeting, {"127.0.0.1:1", meeting->endpoint()});
  std::this_thread::sleep_for(milliseconds{50});
  const auto start = Clock::now();
  meeting->abort("the attempt is over");
  EXPECT_EQ(joined.get(), "Aborted: the attempt is over");
  EXPECT_LT(Clock::now() - start, milliseconds{2000});  // of 5 s
}

TEST(HostMeeting, ARankWithAnotherKeyDoesNotGetIn) {
  for (const int stranger : {0, 1}) {  // the one that connects, the one that is connected to
    const auto a = HostMeeting::open(plan_of(0, 2, stranger == 0 ? 'x' : 'k'), 0), b = HostMeeting::open(plan_of(1, 2, stranger == 1 ? 'x' : 'k'), 1);
    auto first = join_later(*a, {a->endpoint(), b->endpoint()}, milliseconds{300}), second = join_later(*b, {a->endpoint(), b->endpoint()}, milliseconds{300});
    EXPECT_THAT(first.get(), HasSubstr("waited for rank 1, which did not come"));
    EXPECT_THAT(second.get(), HasSubstr("waited for rank 0, which did not come"));
  }
}

TEST(HostMeeting, ARankOfAnotherGroupDoesNotGetInWithTheRightKey) {
  const auto b = HostMeeting::open(plan_of(1), 1), foreign = HostMeeting::open(plan_of(0, 3), 0);
  auto lost = join_later(*foreign, {foreign->endpoint(), b->endpoint(), "127.0.0.3:1"}, milliseconds{300});
  auto second = join_later(*b, {"", b->endpoint()}, milliseconds{300});
  EXPECT_THAT(lost.get(), HasSubstr("waited for ranks 1, 2"));
  EXPECT_THAT(second.get(), HasSubstr("waited for rank 0"));
}

/// What a stranger may send; "" is silence.
std::vector<std::string> attacks() {
  std::vector<std::string> all{"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", std::string(100'000, '\0'), std::string("\x16\x03\x01\xff\xff", 5)};
  std::mt19937 random{7};
  for (int i = 0; i < 12; ++i) {
    std::string bytes(1U << i, '\0');
    for (auto& c : bytes) c = static_cast<char>(random());
    if (i % 2 == 0 && bytes.size() > 5) std::memcpy(bytes.data(), "\x16\x03\x01\x02\x00\x01", 6);
    all.push_back(bytes);
  }
  return all;
}

TEST(HostMeeting, AThousandStrangersKeepNobodyOut) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = std::min<rlim_t>(files.rlim_max, 4096);
  setrlimit(RLIMIT_NOFILE, &files);
  const auto a = HostMeeting::open(plan_of(0), 0), b = HostMeeting::open(plan_of(1), 1);
  auto second = join_later(*b, {a->endpoint(), b->endpoint()}, milliseconds{20'000});
  std::vector<int> strangers;
  const auto all = attacks();
  for (std::size_t i = 0; i < 1000; ++i) {
    const int fd = connect_to(b->endpoint());
    ASSERT_GE(fd, 0) << std::strerror(errno);
    strangers.push_back(fd);
    const auto& bytes = all[i % all.size()];
    (void)send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  const auto open_files = std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, std::filesystem::directory_iterator{});
  EXPECT_LT(open_files, 1000 + 200) << "each of them costs a connection here";
  const auto start = Clock::now();
  EXPECT_EQ(join_later(*a, {a->endpoint(), b->endpoint()}, milliseconds{20'000}).get(), "");
  EXPECT_EQ(second.get(), "");
  EXPECT_LT(Clock::now() - start, milliseconds{2000});
  for (const int fd : strangers) close(fd);
}

/// Cuts the connections of 127.0.0.1 to other hosts, as a network does that goes away.
void cut_connections() {
  for (int fd = 3; fd < 1024; ++fd) {
    sockaddr_in own{}, peer{};
    socklen_t length = sizeof own, peer_length = sizeof peer;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) != 0 || own.sin_family != AF_INET) continue;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0 || own.sin_addr.s_addr != htonl(INADDR_LOOPBACK)) continue;
    (void)shutdown(fd, SHUT_RDWR);
  }
}

void cut_at(Communicator& group, const std::string& at) {
  std::vector<float> whole(40'000), part(40'000 / static_cast<std::size_t>(group.size()));
  const Buffer all{whole.data(), whole.size() * 4, DType::F32}, one{part.data(), part.size() * 4, DType::F32};
  Outcome first;
  for (int k = 0; k < 8; ++k) {
    if (group.rank() == 0 && k == std::stoi(at)) cut_connections();
    const auto outcome = k % 5 == 0   ? group.all_reduce(all, ReduceOp::Sum).wait()
                         : k % 5 == 1 ? group.all_gather(one, all).wait()
                         : k % 5 == 2 ? group.reduce_scatter(all, one, ReduceOp::Sum).wait()
                         : k % 5 == 3 ? group.broadcast(all, 1).wait()
                                      : group.barrier().wait();
    if (!first.ok()) TROUPE_CHECK(outcome.text() == first.text(), outcome.text());
    if (first.ok()) first = outcome;
  }
  TROUPE_CHECK(!first.ok(), "nothing failed");
  TROUPE_CHECK(first.code() == Errc::Aborted, first.text());
  say(first.text());
}

TEST(HostFaults, AConnectionCutAtAnyOperationEndsEveryRankNamingOne) {
  for (const auto* sizes : {"1,1", "2,2", "1,2,1"}) {
    for (int at = 0; at < 6; ++at) {
      const auto start = Clock::now();
      const auto results = run_on_hosts(sizes, true, "cut_at", std::to_string(at));
      EXPECT_EQ(failures(results), "") << sizes << " at " << at;
      for (const auto& result : results) EXPECT_THAT(result.text, HasSubstr(" left the group (waiting: ")) << sizes << " at " << at;
      EXPECT_LT(Clock::now() - start, milliseconds{3000}) << sizes << " at " << at;
    }
  }
}

/// As a driver or a node's agent does: whoever holds a host's memory ends the group on all hosts.
TEST(HostFaults, TheAbortOfOneHostsMemoryFreesTheRanksOfAllHosts) {
  for (const auto* sizes : {"1,1", "2,2", "1,2,1"}) {
    SCOPED_TRACE(sizes);
    TestHosts hosts{numbers_of(sizes), true, milliseconds{30'000}};
    std::vector<std::future<Outcome>> ranks;
    std::atomic<int> working{0};
    std::atomic<bool> aborted{false};
    for (int rank = 0; rank < hosts.size(); ++rank) {
      ranks.push_back(std::async(std::launch::async, [&hosts, &working, &aborted, rank] {
        const auto group = hosts.join(rank, milliseconds{30'000});
        float value = 1;
        group->all_reduce({&value, 4, DType::F32}, ReduceOp::Sum).wait().or_throw();
        ++working;
        while (rank + 1 == hosts.size() && !aborted) std::this_thread::sleep_for(milliseconds{1});  // the others wait for it
        if (rank + 1 == hosts.size()) std::this_thread::sleep_for(milliseconds{500});
        return group->all_reduce({&value, 4, DType::F32}, ReduceOp::Sum).wait();
      }));
    }
    for (int i = 0; i < 20'000 && working < hosts.size(); ++i) std::this_thread::sleep_for(milliseconds{1});
    std::this_thread::sleep_for(milliseconds{20});  // until they wait
    const auto start = Clock::now();
    hosts.groups.front()->abort("the driver has had enough");
    aborted = true;
    for (auto& rank : ranks) {
      const auto outcome = rank.get();
      EXPECT_EQ(outcome.code(), Errc::Aborted) << outcome.text();
      EXPECT_THAT(outcome.text(), HasSubstr("the driver has had enough"));
    }
    EXPECT_LT(Clock::now() - start, milliseconds{5000});
  }
}

struct Directory {
  std::filesystem::path path;
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "troupe-hosts-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Directory() { std::filesystem::remove_all(path); }
};

/// Hosts of one process each, which tell each other where they wait by files.
std::unique_ptr<Communicator> join_process(const std::string& place, int rank, int size, milliseconds timeout) {
  const auto meeting = HostMeeting::open(plan_of(rank, size), rank);
  const std::filesystem::path directory{place};
  std::ofstream{directory / ("new" + std::to_string(rank))} << meeting->endpoint() << std::flush;
  std::filesystem::rename(directory / ("new" + std::to_string(rank)), directory / std::to_string(rank));
  std::vector<std::string> endpoints(static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    for (int i = 0; i < 2000 && !std::filesystem::exists(directory / std::to_string(r)); ++i) std::this_thread::sleep_for(milliseconds{5});
    std::ifstream{directory / std::to_string(r)} >> endpoints[static_cast<std::size_t>(r)];
  }
  auto group = meeting->join(endpoints, self_communicator(), milliseconds{20'000});
  group->set_timeout(timeout);
  return group;
}

void reduce_until_it_ends(Communicator& group, const std::string& how) {
  std::vector<float> values(1'000'000, 1.0F);
  for (int k = 0;; ++k) {
    const auto outcome = group.all_reduce({values.data(), values.size() * 4, DType::F32}, ReduceOp::Max).wait();
    if (k == 3) say("working");
    if (outcome.ok()) continue;
    say(outcome.text());
    TROUPE_CHECK(name(outcome.code()) == how, outcome.text());
    return;
  }
}

TEST(HostFaults, AKilledRankIsNamedLongBeforeTheDeadline) {
  for (int delay = 0; delay < 5; ++delay) {
    const Directory directory;
    Ranks ranks{"host_processes", 3, "reduce_until_it_ends", "Aborted", milliseconds{30'000}, directory.path.string()};
    for (int r = 0; r < 3; ++r) ASSERT_TRUE(ranks.wait_for(r, "working"));
    std::this_thread::sleep_for(std::chrono::microseconds{delay * 1700});
    const auto start = Clock::now();
    ranks.kill(1, SIGKILL);
    const auto results = ranks.join();
    EXPECT_LT(Clock::now() - start, milliseconds{2000});
    for (const std::size_t r : {0U, 2U}) {
      EXPECT_TRUE(results[r].ok) << results[r].text;
      EXPECT_THAT(results[r].text, HasSubstr("rank 1 left the group"));
    }
  }
}

TEST(HostFaults, AStoppedRankIsNamedAtTheDeadline) {
  const Directory directory;
  Ranks ranks{"host_processes", 2, "reduce_until_it_ends", "DeadlinePassed", milliseconds{400}, directory.path.string()};
  for (int r = 0; r < 2; ++r) ASSERT_TRUE(ranks.wait_for(r, "working"));
  ranks.kill(1, SIGSTOP);
  std::this_thread::sleep_for(milliseconds{1200});
  ranks.kill(1, SIGKILL);
  const auto results = ranks.join();
  EXPECT_TRUE(results[0].ok) << results[0].text;
  EXPECT_THAT(results[0].text, testing::ContainsRegex("rank 1 (did not come within|moved no byte for) 400 ms"));
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  using namespace troupe::testing_ranks;
  register_contract(true);
  register_hosts();
  registry().bodies["cut_at"] = troupe::cut_at;
  registry().bodies["reduce_until_it_ends"] = troupe::reduce_until_it_ends;
  registry().joins["host_processes"] = troupe::join_process;
  return main_of_ranks(argc, argv);
}
