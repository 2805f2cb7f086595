#include "host_ranks.hpp"

#include <numeric>
#include <sstream>
#include <stdexcept>

namespace troupe::testing_ranks {

namespace {

std::mutex all_mutex;
std::map<std::string, std::shared_ptr<TestHosts>> all_hosts;

}  // namespace

std::vector<int> numbers_of(const std::string& text) {
  std::vector<int> numbers;
  std::istringstream in{text};
  for (std::string one; std::getline(in, one, ',');) numbers.push_back(std::stoi(one));
  return numbers;
}

TestHosts::TestHosts(std::vector<int> sizes_of_hosts, bool over_memory, std::chrono::milliseconds timeout)
    : sizes(std::move(sizes_of_hosts)), memory(over_memory) {
  for (const int n : sizes) {
    if (memory) groups.push_back(SharedGroup::create(n, timeout));
    else seats.push_back(make_thread_group(n, timeout));
  }
  endpoints.resize(static_cast<std::size_t>(size()));
}

int TestHosts::size() const { return std::accumulate(sizes.begin(), sizes.end(), 0); }

std::pair<std::size_t, int> TestHosts::place_of(int rank) const {
  std::size_t host = 0;
  while (rank >= sizes[host]) rank -= sizes[host++];
  return {host, rank};
}

HostPlan TestHosts::plan(int rank) const {
  HostPlan plan;
  plan.ranks_on = sizes;
  plan.address = "127.0.0." + std::to_string(place_of(rank).first + 1);
  plan.key = std::string(32, 'k');
  return plan;
}

std::unique_ptr<Communicator> TestHosts::local(int rank) {
  const auto [host, place] = place_of(rank);
  return memory ? SharedGroup::join(groups[host]->fd(), place) : std::move(seats[host][static_cast<std::size_t>(place)]);
}

std::vector<std::string> TestHosts::exchange(int rank, const std::string& endpoint) {
  std::unique_lock lock{mutex};
  endpoints[static_cast<std::size_t>(rank)] = endpoint;
  ++num_known;
  changed.notify_all();
  if (!changed.wait_for(lock, std::chrono::seconds{20}, [this] { return num_known == endpoints.size(); })) throw std::runtime_error("a rank did not start");
  std::vector<std::string> of_place;
  int first = 0;
  for (const int ranks : sizes) {
    const int place = place_of(rank).second;
    of_place.push_back(place < ranks ? endpoints[static_cast<std::size_t>(first + place)] : "");
    first += ranks;
  }
  return of_place;
}

std::unique_ptr<Communicator> TestHosts::join(int rank, std::chrono::milliseconds timeout) {
  const auto meeting = HostMeeting::open(plan(rank), rank);
  auto seat = local(rank);
  const auto peers = exchange(rank, meeting->endpoint());
  auto group = meeting->join(peers, std::move(seat), std::chrono::seconds{20});
  group->set_timeout(timeout);
  return group;
}

std::vector<RankResult> run_on_hosts(const std::string& sizes, bool memory, const std::string& body, const std::string& argument,
                                     std::chrono::milliseconds timeout) {
  static int number = 0;
  const auto place = std::to_string(number++);
  const auto hosts = std::make_shared<TestHosts>(numbers_of(sizes), memory, timeout);
  {
    const std::lock_guard lock{all_mutex};
    all_hosts[place] = hosts;
  }
  auto results = Ranks{"hosts", hosts->size(), body, argument, timeout, place}.join();
  const std::lock_guard lock{all_mutex};
  all_hosts.erase(place);
  return results;
}

void register_hosts() {
  registry().on_threads.insert("hosts");
  registry().joins["hosts"] = [](const std::string& place, int rank, int, std::chrono::milliseconds timeout) {
    std::shared_ptr<TestHosts> hosts;
    {
      const std::lock_guard lock{all_mutex};
      hosts = all_hosts.at(place);
    }
    return hosts->join(rank, timeout);
  };
}

}  // namespace troupe::testing_ranks
