#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../../actors/trainer_state.hpp"
#include "scenario.hpp"

namespace troupe {

/// A Trainer under virtual time; the test plays its keeper, its listener and its ranks.
class TrainerTest : public testing::Test {
 protected:
  VirtualTime time_;
  std::shared_ptr<Inbox> keeper_ = std::make_shared<Inbox>();
  std::shared_ptr<Inbox> listener_ = std::make_shared<Inbox>();
  std::shared_ptr<InboxPlacer::Shared> ranks_ = std::make_shared<InboxPlacer::Shared>();
  caf::actor keeper_actor_, listener_actor_ = time_.spawn_inbox(listener_), trainer_;
  TrainerSetup setup_;
  RunContents contents_;
  std::optional<StateCopy> snapshot_;

  void SetUp() override {
    setup_.function = "train";
    setup_.config_json = "{}";
    setup_.listeners = {listener_actor_};
    setup_.make_placer = [this](const StartGroup&) { return std::make_unique<InboxPlacer>(time_, ranks_); };
    setup_.spawn_keeper = [this](caf::actor_system&, const caf::actor& trainer) {
      return keeper_actor_ = time_.spawn_inbox(keeper_, trainer);
    };
  }
  void TearDown() override {
    for (const auto& actor : {trainer_, keeper_actor_, listener_actor_}) {
      if (actor) caf::anon_send_exit(actor, caf::exit_reason::kill);
    }
    time_.settle();
    ranks_->actors.clear();
  }

  template <class Message>
  void send(Message message) {
    caf::anon_send(trainer_, std::move(message));
    time_.settle();
  }
  void tell_group(int rank, std::optional<RunError> error) {
    const auto order = rank_order_.at(static_cast<std::size_t>(rank));
    if (error) {
      send_as_rank(RankLost{order.attempt, rank, *error});
    } else {
      send_as_rank(RankDone{order.attempt, rank, 0, {}});
    }
  }
  template <class Message>
  void send_as_rank(Message message) {
    caf::anon_send(group(), std::move(message));
    time_.settle();
  }
  caf::actor group() {
    return dynamic_cast<caf::stateful_actor<TrainerState>&>(*caf::actor_cast<caf::abstract_actor*>(trainer_)).state.group;
  }
  void begin() {
    trainer_ = time_.system().spawn(trainer_behavior, setup_);
    time_.settle();
    ASSERT_TRUE(keeper_->take<OpenRun>());
    send(RunOpened{"run", "/runs/run", contents_, {}, snapshot_});
    take_orders();
  }
  void take_orders() {
    rank_order_.clear();
    for (auto& rank : ranks_->ranks) rank_order_.push_back(*rank->take<RunRank>());
  }
  void lose(int rank, Errc code, const std::string& text) {
    RunError error;
    error.code = code;
    error.message = text;
    tell_group(rank, error);
  }
  void settle_run() {
    ASSERT_TRUE(keeper_->take<SettleRun>());
    send(RunSettled{snapshot_});
  }
  Result end() {
    const auto finish = keeper_->take<FinishRun>();
    if (!finish) throw std::runtime_error{"the trainer does not finish"};
    send(RunFinished{});
    return listener_->take<RunEnded>().value().result;
  }
  CheckpointRecord record(std::uint64_t index) { return {Checkpoint{"/runs/run/" + checkpoint_name(index)}, {}, index}; }

  std::vector<RunRank> rank_order_;
};

}  // namespace troupe
