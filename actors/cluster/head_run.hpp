#pragma once

#include "head.hpp"
#include "program_file.hpp"
#include "questions.hpp"

#include <boost/asio/steady_timer.hpp>

namespace troupe::detail {

class HeadProcess;

constexpr const char* proof_name = ".troupe_nodes";  ///< the file of a run's directory that nodes look for
constexpr const char* history_name = ".troupe_history";
/// As PartNote's: what the run's directory says, else `adopted` or a new one, which it says from now on.
[[nodiscard]] std::string history_of(const std::filesystem::path& run, const std::string& adopted = {});

/// A run on a cluster's nodes: its places, and its processes there. On the head's thread.
class HeadRun : public std::enable_shared_from_this<HeadRun> {
 public:
  HeadRun(Head& head, const Session& session, const ScalingConfig& scaling, const RunConfig& run);
  ~HeadRun();

  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }  // any thread

  // ---- orders of the run
  void begin_attempt(const StartGroup& order);
  void take(const std::shared_ptr<HeadProcess>& process);
  void give_back(const std::shared_ptr<HeadProcess>& process);
  void abort(Attempt attempt, const std::string& reason);
  void end_attempt(Attempt attempt);
  void keep_spares(int count);
  void find_places(int count, const std::function<void(int, const std::string&)>& done);
  void start_anew();
  void take_orders(NodeProcesses::Orders orders);
  [[nodiscard]] const std::string& name() const noexcept { return status_.name; }
  [[nodiscard]] RunStatus& status() noexcept { return status_; }
  /// Ends its processes, and gives its places back.
  void close();

  // ---- news of the cluster
  void heard(const std::shared_ptr<HeadNode>& node, NodeMessage message);
  void node_lost(const std::shared_ptr<HeadNode>& node, const std::string& why);
  void node_drains(const std::shared_ptr<HeadNode>& node, const std::string& reason);
  void stop(const std::string& reason, bool now);
  [[nodiscard]] bool is_waiting() const noexcept { return phase_ == Phase::Waiting; }
  [[nodiscard]] std::chrono::steady_clock::time_point waits_since() const noexcept { return waits_since_; }
  void try_places();
  [[nodiscard]] RunStatus status_now() const;
  /// With the rank's seat.
  [[nodiscard]] RunRank complete(RunRank order) const;
  /// To a process that has its place.
  void tell(const HeadProcess& process, const LinkMessage& message);

  // ---- nodes' disks, from any thread
  [[nodiscard]] Questions& questions() noexcept { return questions_; }
  /// A node's disk.
  [[nodiscard]] LinkDisk disk_of(const std::string& node);
  /// What every node must see that shares the run's directory.
  [[nodiscard]] const std::string& proof() const noexcept { return proof_; }
  [[nodiscard]] bool is_bringing() const noexcept { return num_bringing_ > 0; }
  void warn(const std::string& text);
  void drop_parts(const std::vector<std::string>& directories);
  struct Places {
    std::map<std::string, std::vector<int>> on_own_disk;  ///< ranks, by node
    std::string lost;                                     ///< a node that is
  };
  /// Of the attempt's ranks. Blocks: not on the head's thread.
  [[nodiscard]] Places places_of(const std::vector<int>& ranks);
  [[nodiscard]] std::vector<std::string> node_names();

 private:
  enum class Phase : std::uint8_t { Idle, Proving, Waiting, Placed, Failed, Closed };

  void prove(Attempt attempt);
  void warn_now(const std::string& text);
  void told_of_disk(const HeadNode& node, const DiskTold& news);
  void answer(const std::shared_ptr<HeadNode>& node, const ReadFile& question);
  [[nodiscard]] FileRead read_for(const std::string& asker, const ReadFile& question);
  [[nodiscard]] bool take_from_others(const std::string& asker, const ReadFile& question, const std::string& path, std::string& bytes);
  template <class Work>
  auto on_thread(Work work);
  [[nodiscard]] std::vector<NodeRoom> rooms(std::vector<std::shared_ptr<HeadNode>>& nodes) const;
  void give_places_back();
  void settle(const std::vector<std::shared_ptr<HeadNode>>& node_of);
  void open_nodes();
  void launch(const std::shared_ptr<HeadProcess>& process);
  void fail(Errc code, const std::string& why);
  /// How many of this attempt's ranks would have places now.
  [[nodiscard]] int count_places(std::span<const NodeRoom> room) const;
  void resources_overdue();

  Head& head_;
  const std::uint64_t id_;
  OpenRun open_;
  const std::string proof_;
  std::string proof_path_;
  Phase phase_ = Phase::Idle;
  Attempt attempt_ = 0;
  bool is_first_ = true;  // no attempt of this run has had its places yet
  ScalingConfig scaling_;
  std::chrono::milliseconds collective_timeout_{0}, wait_limit_{0};
  RankNeeds needs_, taken_;  // of this attempt, and what is taken now
  std::chrono::steady_clock::time_point waits_since_;
  boost::asio::steady_timer patience_;
  Errc failure_ = Errc::Ok;
  std::string why_failed_;
  std::optional<int> places_;  // so many ranks would have had one
  std::vector<std::shared_ptr<HeadNode>> node_of_;    // by rank; taken until the next attempt
  std::vector<std::shared_ptr<HeadNode>> hosts_;      // those, each once, in order
  std::vector<int> host_of_, local_rank_;             // by rank
  std::vector<int> ranks_on_;                         // by host
  std::vector<std::vector<int>> devices_of_;          // GPUs of its node, by rank
  std::string key_;                                   // of this attempt
  std::map<std::uint64_t, std::shared_ptr<HeadProcess>> processes_;
  NodeProcesses::Orders orders_;
  RunStatus status_;

  // ---- its directory
  std::string directory_, history_, resume_;    // of this attempt
  bool must_share_ = false;
  std::vector<std::uint64_t> kept_;
  std::set<std::string> own_disks_, bringing_;  // nodes
  std::atomic<std::size_t> num_bringing_{0};
  std::vector<std::string> early_warnings_;  // before there was somebody to tell
  Questions questions_;
};

/// "host:/path": where this program has a run's directory.
[[nodiscard]] std::string place_of_whole(const std::string& directory);

/// A rank's process on a node, or on its way there.
class HeadProcess final : public RankProcess, public std::enable_shared_from_this<HeadProcess> {
 public:
  class Observer;

  HeadProcess(std::weak_ptr<Head> head, std::weak_ptr<HeadRun> run, std::uint64_t id, int rank, ProcessHandlers handlers);

  [[nodiscard]] Outcome send(const LinkMessage& message) override;
  void read_output(std::function<void(std::vector<std::string>)> done) override;
  void finish() override;
  void kill() noexcept override;
  [[nodiscard]] std::shared_ptr<RankObserver> observer() override;
  [[nodiscard]] std::string node() const override;

  // ---- on the head's thread
  const std::uint64_t id;
  const int rank;
  std::shared_ptr<HeadNode> place;  ///< none yet, or gone
  std::vector<LinkMessage> early;   ///< before it had a place
  ProcessHandlers handlers;
  bool was_killed = false;          ///< before it had a place
  void set_place(const std::shared_ptr<HeadNode>& node);
  void heard(NodeMessage message, std::uint64_t run);
  void ended(ProcessEnded end);

 private:
  /// Runs `work` on the head's thread, while both live.
  template <class Work>
  void post(Work work);
  void order(const NodeMessage& message);

  const std::weak_ptr<Head> head_;
  const std::weak_ptr<HeadRun> run_;
  const std::shared_ptr<Observer> observer_;
  std::vector<std::function<void(std::vector<std::string>)>> readers_;
  mutable std::mutex mutex_;
  std::string node_name_;
};

}  // namespace troupe::detail
