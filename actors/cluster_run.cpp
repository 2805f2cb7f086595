#include "cluster_run.hpp"

#include <troupe/caf_types.hpp>
#include <troupe/messages.hpp>
#include <troupe/records.hpp>

#include <caf/all.hpp>

#include <nlohmann/json.hpp>

namespace troupe::detail {

void check_cluster(const TrainerOptions& options) {
  const bool on_nodes = options.scaling.placement == Placement::Nodes;
  if (on_nodes && !options.cluster) {
    throw Failure{Errc::InvalidConfig, "ScalingConfig.placement is Placement::Nodes, but TrainerOptions.cluster is not set; make one with Cluster::open"};
  }
  if (!on_nodes && options.cluster) {
    throw Failure{Errc::InvalidConfig, std::string("TrainerOptions.cluster is set, but ranks are ") + name(options.scaling.placement) +
                                           "; set ScalingConfig.placement = Placement::Nodes to use its nodes"};
  }
  if (on_nodes && !dynamic_cast<ClusterPlaces*>(options.cluster.get())) {
    throw Failure{Errc::InvalidArgument, "TrainerOptions.cluster was not made by Cluster::open"};
  }
}

std::shared_ptr<NodeProcesses> open_on_nodes(const Session& session, const TrainerOptions& options) {
  check_cluster(options);
  return dynamic_cast<ClusterPlaces&>(*options.cluster).processes_for(session, options.scaling, options.run);
}

namespace {

/// Speed over the last reports of rank 0's progress.
struct Pace {
  std::chrono::steady_clock::time_point since{};
  std::uint64_t step = 0;
  double per_second = 0;

  void at(std::uint64_t now_step) {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - since).count();
    if (since == std::chrono::steady_clock::time_point{} || now_step < step) {
      since = now, step = now_step;
    } else if (seconds >= 1) {
      per_second = static_cast<double>(now_step - step) / seconds;
      since = now, step = now_step;
    }
  }
};

struct KeeperOfStatus {
  static inline const char* name = "troupe.run_status";
  Pace pace;
};

caf::behavior status_keeper(caf::stateful_actor<KeeperOfStatus>* self, const std::shared_ptr<NodeProcesses>& processes) {
  self->set_default_handler(caf::drop);
  return {
      [=](const RunStarted& news) {
        processes->tell_status([news](RunStatus& status) {
          status.restarts += status.attempt == 0 ? 0 : 1;
          status.name = news.run_name;
          status.path = news.path;
          status.attempt = news.attempt;
          status.num_ranks = news.world_size;
          status.state = status.restarts == 0 ? "starting" : "restarting";
        });
      },
      [=](const Progressed& news) {
        if (news.rank != 0) return;
        const auto step = static_cast<std::uint64_t>(news.progress.step);
        self->state.pace.at(step);
        processes->tell_status([step, pace = self->state.pace.per_second](RunStatus& status) {
          status.state = "running";
          status.step = step;
          status.steps_per_second = pace;
        });
      },
      [=](const ReportArrived& news) {
        if (news.report.rank != 0) return;
        auto json = to_json(news.report).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
        processes->tell_status([json = std::move(json)](RunStatus& status) {
          status.state = "running";
          status.last_report_json = json;
        });
      },
      [=](const RunEnded& news) {
        processes->tell_status([error = news.result.error ? news.result.error->message : std::string{}](RunStatus& status) {
          status.state = "ended";
          status.error = error;
        });
        self->quit();
      },
  };
}

}  // namespace

caf::actor spawn_status_keeper(caf::actor_system& system, std::shared_ptr<NodeProcesses> processes) {
  return system.spawn(status_keeper, std::move(processes));
}

void pass_orders(NodeProcesses& processes, const caf::actor& trainer) {
  const auto weak = caf::actor_cast<caf::actor_addr>(trainer);
  NodeProcesses::Orders orders;
  orders.move = [weak](const std::string& reason) {
    if (const auto alive = caf::actor_cast<caf::actor>(weak)) caf::anon_send(alive, MoveRanks{reason});
  };
  orders.stop = [weak](const std::string& reason, bool now) {
    const auto alive = caf::actor_cast<caf::actor>(weak);
    for (int stop = 0; alive && stop < (now ? 2 : 1); ++stop) caf::anon_send(alive, StopRun{reason});
  };
  orders.warn = [weak](const std::string& text) {
    if (const auto alive = caf::actor_cast<caf::actor>(weak)) caf::anon_send(alive, RunWarning{text});
  };
  processes.take_orders(std::move(orders));
}

}  // namespace troupe::detail
