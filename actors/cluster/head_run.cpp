#include "head_run.hpp"

#include "../frame.hpp"

#include <troupe/run_storage.hpp>

#include <boost/asio/post.hpp>

#include <sys/random.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <numeric>

namespace troupe::detail {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t key_bytes = 32;

std::string random_bytes(std::size_t count) {
  std::string bytes(count, '\0');
  for (std::size_t got = 0; got < count;) {
    const auto more = getrandom(bytes.data() + got, count - got, 0);
    if (more > 0) got += static_cast<std::size_t>(more);
  }
  return bytes;
}

std::string in_hex(const std::string& bytes) {
  constexpr const char* digits = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    text += digits[static_cast<unsigned char>(byte) >> 4];
    text += digits[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

OpenRun order_for(std::uint64_t id, const Session& session, const ScalingConfig& scaling, const RunConfig& run) {
  OpenRun open;
  open.run = id;
  open.name = run.name.empty() ? "a run" : run.name;
  open.program = session.program();
  // The file that this process runs, also when the one at its path was replaced since: nodes then have another build.
  const auto digest = program_digest("/proc/self/exe");
  open.program_bytes = digest.bytes;
  open.program_digest = digest.digest;
  open.arguments = session.arguments();
  open.environment = run.worker_env;
  open.cpus_per_rank = scaling.cpus_per_worker;
  open.start_timeout_ms = run.start_timeout.count();
  open.beat_ms = std::clamp<std::int64_t>(run.step_timeout.count() / 16, 10, 500);  // half of what the watch looks at
  return open;
}

}  // namespace

std::string history_of(const std::filesystem::path& run, const std::string& adopted) {
  std::string history;
  std::ifstream{run / history_name} >> history;
  if (!history.empty()) return history;
  history = adopted.empty() ? in_hex(random_bytes(16)) : adopted;
  try {
    real_file_system().write_atomically(run / history_name, history + "\n");
  } catch (const Failure&) {
    // Parts of this run are then not used again.
  }
  return history;
}

namespace {

std::vector<std::uint64_t> checkpoints_in(const std::filesystem::path& run) {
  std::vector<std::uint64_t> found;
  std::error_code error;
  for (std::filesystem::directory_iterator at{run, error}; !error && at != std::filesystem::directory_iterator{}; at.increment(error)) {
    if (const auto index = index_of_checkpoint(at->path().filename().string())) found.push_back(*index);
  }
  return found;
}

std::string node_lost_text(const HeadNode& node, const std::string& why) {
  if (why.find("'" + node.name + "' was not heard of") != std::string::npos) return why;  // the link names its peer's certificate, which several nodes may share
  return "node " + node.name + " is lost: " + why;
}

}  // namespace

HeadRun::HeadRun(Head& head, const Session& session, const ScalingConfig& scaling, const RunConfig& run)
    : head_(head), id_(head.next_id()), open_(order_for(id_, session, scaling, run)), proof_(in_hex(random_bytes(16))), patience_(head.io()) {
  status_.name = run.name;
  status_.state = "starting";
  status_.num_ranks = scaling.num_workers;
}

HeadRun::~HeadRun() = default;

// ---- an attempt gets its places -----------------------------------------------------------------------------

void HeadRun::begin_attempt(const StartGroup& order) {
  if (phase_ == Phase::Closed) return;
  attempt_ = order.attempt;
  places_.reset();
  open_.name = order.run_name;
  scaling_ = order.scaling;
  must_share_ = order.run.node_storage == NodeStorage::Shared;
  collective_timeout_ = order.run.collective_timeout;
  wait_limit_ = order.run.start_timeout * 9 / 10;  // before the group says that ranks did not start
  needs_ = {resources_of_rank(order.scaling), order.scaling.worker_labels};
  key_ = random_bytes(key_bytes);
  directory_ = order.run_directory;
  resume_ = order.resume_checkpoint ? std::filesystem::path{*order.resume_checkpoint}.filename().string() : "";
  proof_path_ = directory_ + "/" + proof_name;
  processes_.clear();
  bringing_.clear();
  num_bringing_ = 0;
  prove(attempt_);
}

// What a node reads that shares the run's directory; and which checkpoints there are.
void HeadRun::prove(Attempt attempt) {
  phase_ = Phase::Proving;
  asio::post(head_.disk(), [self = shared_from_this(), attempt, path = proof_path_, proof = proof_, &io = head_.io()] {
    std::ofstream file{path, std::ios::trunc};
    file << proof << "\n";
    file.close();
    const auto run = std::filesystem::path{path}.parent_path();
    asio::post(io, [self, attempt, path, kept = checkpoints_in(run), history = history_of(run), ok = !file.fail()] {
      if (self->attempt_ != attempt || self->phase_ != Phase::Proving) return;
      self->kept_ = kept;
      self->history_ = history;
      if (!ok) return self->fail(Errc::StorageUnavailable, "cannot write " + path);
      self->phase_ = Phase::Waiting;
      self->waits_since_ = std::chrono::steady_clock::now();
      self->patience_.expires_after(self->wait_limit_);
      self->patience_.async_wait([weak = self->weak_from_this()](const auto& error) {
        if (const auto waiting = weak.lock(); waiting && !error) waiting->resources_overdue();
      });
      self->try_places();
    });
  });
}

std::vector<NodeRoom> HeadRun::rooms(std::vector<std::shared_ptr<HeadNode>>& nodes) const {
  std::vector<NodeRoom> all;
  for (const auto& [name, node] : head_.nodes()) {
    nodes.push_back(node);
    all.push_back({name, node->free, node->total, node->labels, !node->is_draining, node->devices});
  }
  return all;
}

void HeadRun::give_places_back() {
  for (std::size_t rank = 0; rank < node_of_.size(); ++rank) {
    auto& node = *node_of_[rank];
    troupe::give_back(node.free, taken_.resources);
    give_back_devices(node.devices, taken_.resources.gpus, devices_of_[rank]);
  }
  node_of_.clear();
  devices_of_.clear();
}

void HeadRun::try_places() {
  if (phase_ != Phase::Waiting) return;
  std::vector<std::string> preferred;
  for (const auto& host : hosts_) preferred.push_back(host->name);
  give_places_back();
  std::vector<std::shared_ptr<HeadNode>> nodes;
  const auto room = rooms(nodes);
  const auto places = place_ranks(room, needs_, scaling_.num_workers, scaling_.placement_strategy, preferred);
  if (places.node_of.empty()) {
    why_failed_ = places.missing;
    // An elastic run goes on with fewer at once, and grows later.
    if (scaling_.min_workers == 0) return;
    places_ = count_places(room);
    if (scaling_.num_workers > scaling_.min_workers && !is_first_) fail(Errc::StartFailed, "there is no place for all ranks: " + why_failed_);
    return;
  }
  std::vector<std::shared_ptr<HeadNode>> node_of;
  for (const auto index : places.node_of) node_of.push_back(nodes[index]);
  settle(node_of);
}

int HeadRun::count_places(std::span<const NodeRoom> room) const {
  int least = 0, more = scaling_.num_workers;  // these fit, those do not: fewer ranks fit wherever more do
  while (more - least > 1) {
    const int middle = least + (more - least) / 2;
    (place_ranks(room, needs_, middle, scaling_.placement_strategy).node_of.empty() ? more : least) = middle;
  }
  return least;
}

void HeadRun::resources_overdue() {
  if (phase_ != Phase::Waiting) return;
  fail(Errc::StartFailed, "there was no place for all ranks within " + std::to_string(wait_limit_.count() / 1000) + " s: " + why_failed_);
}

void HeadRun::fail(Errc code, const std::string& why) {
  phase_ = Phase::Failed;
  patience_.cancel();
  failure_ = code;
  why_failed_ = why;
  for (const auto& [number, process] : std::exchange(processes_, {})) process->ended({{code, why}, {}, {}, {}, places_});
}

void HeadRun::settle(const std::vector<std::shared_ptr<HeadNode>>& node_of) {
  patience_.cancel();
  phase_ = Phase::Placed;
  is_first_ = false;
  node_of_ = node_of;
  taken_ = needs_;
  const auto hosts_before = std::exchange(hosts_, {});
  host_of_.clear();
  local_rank_.clear();
  ranks_on_.clear();
  for (const auto& node : node_of_) {
    (void)troupe::take(node->free, taken_.resources);
    devices_of_.push_back(take_devices(node->devices, taken_.resources.gpus));
    if (hosts_.empty() || hosts_.back() != node) {  // ranks of a node follow each other
      hosts_.push_back(node);
      ranks_on_.push_back(0);
    }
    host_of_.push_back(static_cast<int>(hosts_.size()) - 1);
    local_rank_.push_back(ranks_on_.back()++);
  }
  for (const auto& node : hosts_before) {
    if (std::ranges::find(hosts_, node) == hosts_.end() && node->runs.erase(id_) > 0) node->send(CloseRun{id_});
  }
  open_nodes();
  for (const auto& [number, process] : processes_) launch(process);
}

void HeadRun::open_nodes() {
  status_.node_of_rank.clear();
  for (const auto& node : node_of_) status_.node_of_rank.push_back(node->name);
  const auto whole = place_of_whole(directory_);
  std::int32_t first = 0;
  for (std::size_t host = 0; host < hosts_.size(); ++host) {
    const auto& node = hosts_[host];
    if (node->runs.insert(id_).second) node->send(open_);
    OpenAttempt order{id_, attempt_, std::vector<std::int32_t>(static_cast<std::size_t>(ranks_on_[host])), collective_timeout_.count(), proof_path_, proof_, must_share_,
                      directory_, whole, history_, resume_, kept_};
    std::iota(order.ranks.begin(), order.ranks.end(), first);
    first += ranks_on_[host];
    node->send(order);
  }
}

// ---- its processes ------------------------------------------------------------------------------------------

void HeadRun::take(const std::shared_ptr<HeadProcess>& process) {
  if (phase_ == Phase::Failed) return process->ended({{failure_, why_failed_}, {}, {}, {}, places_});
  if (phase_ == Phase::Closed || phase_ == Phase::Idle) return process->ended({{Errc::Aborted, "the run has ended"}, {}, {}, {}});
  processes_[process->id] = process;
  if (phase_ == Phase::Placed) launch(process);
}

void HeadRun::launch(const std::shared_ptr<HeadProcess>& process) {
  if (process->was_killed) return;  // before it was started
  const auto& node = node_of_[static_cast<std::size_t>(process->rank)];
  process->set_place(node);
  if (const auto known = head_.nodes().find(node->name); known == head_.nodes().end() || known->second != node) {
    return process->ended({{}, {Errc::NodeLost, "node " + node->name + " was lost before its ranks were started"}, {}, {}});
  }
  node->send(TakeProcess{id_, process->id, attempt_, process->rank});
  for (auto& message : std::exchange(process->early, {})) {
    if (auto* order = std::get_if<RunRank>(&message)) message = complete(std::move(*order));
    tell(*process, message);
  }
}

void HeadRun::tell(const HeadProcess& process, const LinkMessage& message) {
  const auto frame = encode_frame(message, std::size_t{1} << 30);  // its length was looked at before
  process.place->send(ToRank{id_, process.id, static_cast<std::uint16_t>(message.index()), frame.substr(frame_header_bytes)});
}

RunRank HeadRun::complete(RunRank order) const {
  const auto rank = static_cast<std::size_t>(order.rank);
  order.node_rank = host_of_[rank];
  order.local_rank = local_rank_[rank];
  order.local_world_size = ranks_on_[static_cast<std::size_t>(host_of_[rank])];
  if (!devices_of_[rank].empty()) order.gpu = devices_of_[rank].front();
  if (hosts_.size() > 1) order.hosts = {ranks_on_, node_of_[rank]->address, key_};
  return order;
}

void HeadRun::give_back(const std::shared_ptr<HeadProcess>& process) {
  process->handlers = {};
  if (process->place) process->place->send(GiveBackProcess{id_, process->id});
  processes_.erase(process->id);
}

void HeadRun::abort(Attempt attempt, const std::string& reason) {
  if (attempt != attempt_ || phase_ != Phase::Placed) return;
  for (const auto& node : hosts_) node->send(AbortAttempt{id_, attempt, reason});
}

void HeadRun::end_attempt(Attempt attempt) {
  if (attempt != attempt_ || phase_ == Phase::Closed) return;
  if (phase_ == Phase::Placed) {
    for (const auto& node : hosts_) node->send(CloseAttempt{id_, attempt});
  }
  phase_ = Phase::Idle;
  patience_.cancel();
}

void HeadRun::keep_spares(int count) {
  if (phase_ != Phase::Placed || count == 0) return;
  const auto num_hosts = static_cast<int>(hosts_.size());
  for (const auto& node : hosts_) node->send(KeepSpares{id_, (count + num_hosts - 1) / num_hosts});
}

// As the next attempt will look: with its own places given back.
void HeadRun::find_places(int count, const std::function<void(int, const std::string&)>& done) {
  std::vector<std::shared_ptr<HeadNode>> nodes;
  auto room = rooms(nodes);
  for (std::size_t rank = 0; rank < node_of_.size(); ++rank) {
    const auto one = std::ranges::find(room, node_of_[rank]->name, &NodeRoom::name);
    if (one == room.end()) continue;
    troupe::give_back(one->free, taken_.resources);
    give_back_devices(one->devices, taken_.resources.gpus, devices_of_[rank]);
  }
  std::string why;
  for (int more = count; more > 0; --more) {
    const auto places = place_ranks(room, needs_, scaling_.num_workers + more, scaling_.placement_strategy);
    if (!places.node_of.empty()) return done(more, why);
    if (why.empty()) why = places.missing;
  }
  done(0, why);
}

void HeadRun::start_anew() {
  for (const auto& node : hosts_) node->send(StartAnew{id_});
}

void HeadRun::close() {
  if (std::exchange(phase_, Phase::Closed) == Phase::Closed) return;
  patience_.cancel();
  questions_.close("the run has ended");
  for (const auto& [name, node] : head_.nodes()) {
    if (node->runs.erase(id_) > 0) node->send(CloseRun{id_});
  }
  for (const auto& [number, process] : std::exchange(processes_, {})) process->ended({{Errc::Aborted, "the run has ended"}, {}, {}, {}});
  give_places_back();
  hosts_.clear();
  status_.node_of_rank.clear();
  if (!proof_path_.empty()) {
    asio::post(head_.disk(), [path = proof_path_] {
      std::error_code ignored;
      std::filesystem::remove(path, ignored);
    });
  }
  head_.places_changed();
}

// ---- news ---------------------------------------------------------------------------------------------------

void HeadRun::heard(const std::shared_ptr<HeadNode>& node, NodeMessage message) {
  if (const auto* disk = std::get_if<DiskTold>(&message)) return told_of_disk(*node, *disk);
  if (const auto* question = std::get_if<ReadFile>(&message)) return answer(node, *question);
  const auto answered = std::visit([](const auto& news) {
    if constexpr (requires { news.id; news.run; }) return news.id;
    return std::uint64_t{0};
  }, message);
  if (answered != 0) return questions_.answered(answered, std::move(message));
  const auto number = std::visit([](const auto& news) {
    if constexpr (requires { news.process; }) return news.process;
    return std::uint64_t{0};
  }, message);
  const auto found = processes_.find(number);
  if (found == processes_.end() || found->second->place != node) return;  // of one that is given back or over
  const auto process = found->second;
  process->heard(std::move(message), id_);
  if (!process->place) processes_.erase(number);  // it has ended
}

void HeadRun::node_lost(const std::shared_ptr<HeadNode>& node, const std::string& why) {
  const auto text = node_lost_text(*node, why);
  for (const auto& [number, process] : std::map{processes_}) {
    if (process->place != node) continue;
    processes_.erase(number);
    process->ended({{}, {Errc::NodeLost, text}, {}, {}});
  }
  node->runs.erase(id_);
  questions_.fail(node->name, Errc::NodeLost, text);
  bringing_.erase(node->name);
  num_bringing_ = bringing_.size();
}

void HeadRun::node_drains(const std::shared_ptr<HeadNode>& node, const std::string& reason) {
  if (std::ranges::find(hosts_, node) != hosts_.end() && orders_.move) orders_.move(reason);
}

void HeadRun::stop(const std::string& reason, bool now) {
  if (orders_.stop) orders_.stop(reason, now);
}

RunStatus HeadRun::status_now() const {
  auto status = status_;
  if (phase_ == Phase::Waiting) status.state = "waiting for resources: " + why_failed_;
  return status;
}

}  // namespace troupe::detail
