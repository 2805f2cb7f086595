#include "head_run.hpp"
#include "node_storage.hpp"
#include "node_machine.hpp"

#include <boost/asio/post.hpp>

namespace troupe {

namespace asio = boost::asio;

const char* name(NodeState state) noexcept {
  return state == NodeState::Up ? "up" : state == NodeState::Draining ? "draining" : "away";
}

namespace detail {
namespace {

/// A run's handle on its cluster, from any thread.
class RunHandle final : public NodeProcesses {
 public:
  RunHandle(std::shared_ptr<Head> head, std::shared_ptr<HeadRun> run) : head_(std::move(head)), run_(std::move(run)) {
    post([head = head_.get()](const std::shared_ptr<HeadRun>& self) { head->add_run(self); });
  }
  ~RunHandle() override {
    post([head = head_.get()](const std::shared_ptr<HeadRun>& self) {
      self->close();
      head->remove_run(self);
    });
  }

  void begin_attempt(const StartGroup& order) override {
    post([order](const auto& run) { run->begin_attempt(order); });
  }
  std::shared_ptr<RankProcess> take(int rank, ProcessHandlers handlers) override {
    auto process = std::make_shared<HeadProcess>(head_, run_, head_->next_id(), rank, std::move(handlers));
    post([process](const auto& run) { run->take(process); });
    return process;
  }
  void give_back(const std::shared_ptr<RankProcess>& process) override {
    post([own = std::static_pointer_cast<HeadProcess>(process)](const auto& run) { run->give_back(own); });
  }
  void abort(Attempt attempt, const std::string& reason) noexcept override {
    post([attempt, reason](const auto& run) { run->abort(attempt, reason); });
  }
  void end_attempt(Attempt attempt) noexcept override {
    post([attempt](const auto& run) { run->end_attempt(attempt); });
  }
  void keep_spares(int count) override {
    post([count](const auto& run) { run->keep_spares(count); });
  }
  void find_places(int count, std::function<void(int, const std::string&)> done) override {
    post([count, done = std::move(done)](const auto& run) { run->find_places(count, done); });
  }
  void start_anew() override {
    post([](const auto& run) { run->start_anew(); });
  }
  void take_orders(Orders orders) override {
    post([orders = std::move(orders)](const auto& run) { run->take_orders(orders); });
  }
  void tell_status(std::function<void(RunStatus&)> change) override {
    post([change = std::move(change)](const auto& run) { change(run->status()); });
  }
  bool is_preparing() const override { return run_->is_bringing(); }
  std::unique_ptr<RunStorage> open_storage(const RunConfig& run, const std::function<void(const std::filesystem::path&)>& before_reading) override {
    return std::make_unique<StorageOnNodes>(run, before_reading, head_, run_);
  }
  void close() noexcept override {
    post([](const auto& run) { run->close(); });
  }

 private:
  // The head outlives its thread, and what is posted there.
  template <class Work>
  void post(Work work) {
    asio::post(head_->io(), [run = run_, work = std::move(work)] { work(run); });
  }

  const std::shared_ptr<Head> head_;
  const std::shared_ptr<HeadRun> run_;
};

ClusterOptions named(ClusterOptions options) {
  auto& security = options.security;
  if (security.directory.empty() && security.name.empty()) security.name = host_name();
  return options;
}

class HeadCluster final : public Cluster, public ClusterPlaces {
 public:
  explicit HeadCluster(ClusterOptions options) : head_(std::make_shared<Head>(named(std::move(options)))) { head_->listen(); }

  std::string address() const override { return head_->address(); }
  ClusterStatus status() const override { return head_->status(); }
  bool wait_for_nodes(int count, std::chrono::milliseconds limit) override { return head_->wait_for_nodes(count, limit); }
  void drain(const std::string& node) override { head_->drain(node); }
  std::shared_ptr<NodeProcesses> processes_for(const Session& session, const ScalingConfig& scaling, const RunConfig& run) override {
    return open_run_on(head_, session, scaling, run);
  }

 private:
  const std::shared_ptr<Head> head_;
};

}  // namespace

std::shared_ptr<NodeProcesses> open_run_on(std::shared_ptr<Head> head, const Session& session, const ScalingConfig& scaling, const RunConfig& run) {
  const auto on_nodes = std::make_shared<HeadRun>(*head, session, scaling, run);
  return std::make_shared<RunHandle>(std::move(head), on_nodes);
}

}  // namespace detail

std::shared_ptr<Cluster> Cluster::open(ClusterOptions options) { return std::make_shared<detail::HeadCluster>(std::move(options)); }

}  // namespace troupe
