#include "../core/dataset/numbers_source.hpp"

#include <troupe/dataset_actors.hpp>

#include <caf/all.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <thread>

namespace troupe {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using namespace std::chrono_literals;
using Ids = std::vector<std::int64_t>;

std::shared_ptr<arrow::RecordBatch> doubled(const std::shared_ptr<arrow::RecordBatch>& rows) {
  arrow::Int64Builder builder;
  for (const auto id : test::ids_of(*rows)) builder.Append(2 * id).ok();
  return arrow::RecordBatch::Make(rows->schema(), rows->num_rows(), {builder.Finish().ValueOrDie()});
}

caf::behavior doubler() {
  return {[](const MapBatch& order) { return MappedBatch{doubled(order.rows)}; }};
}

class DatasetActors : public testing::Test {
 protected:
  caf::actor_system_config config_;
  caf::actor_system system_{config_};

  Dataset rows(std::vector<caf::actor> actors, MapOnOptions options = {.name = "double"}, std::int64_t count = 100) {
    return map_batches_on(Dataset{test::numbers({count / 2, count - count / 2})}, system_, std::move(actors), std::move(options));
  }
  static std::string failure_of(const Dataset& rows, Errc code) {
    try {
      auto stream = rows.stream(test::small_blocks());
      (void)test::drain(stream);
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.code(), code) << failure.what();
      return failure.what();
    }
    return "nothing was thrown";
  }
  static Ids expected(std::int64_t count) {
    auto ids = test::counting(0, count);
    for (auto& id : ids) id *= 2;
    return ids;
  }
};

TEST_F(DatasetActors, HaveRowsMappedInTheirOrder) {
  for (const std::size_t workers : {1, 3}) {
    std::vector<caf::actor> actors;
    for (std::size_t w = 0; w < workers; ++w) actors.push_back(system_.spawn(doubler));
    auto stream = rows(actors, {.name = "double", .concurrency = 4}).stream(test::small_blocks());
    EXPECT_EQ(test::drain(stream), expected(100));
  }
}

TEST_F(DatasetActors, AreSentNoMoreThanTheirCredits) {
  std::atomic<int> now{0}, most{0};
  // Answers later than it is asked, so that questions pile up as far as they may.
  using Answer = caf::atom_constant<caf::atom("answer")>;
  const auto waiting = std::make_shared<std::deque<std::pair<std::shared_ptr<arrow::RecordBatch>, caf::response_promise>>>();
  const auto slow = system_.spawn([&, waiting](caf::event_based_actor* self) -> caf::behavior {
    return {
        [&, waiting, self](const MapBatch& order) -> caf::result<MappedBatch> {
          most = std::max(most.load(), ++now);
          waiting->emplace_back(order.rows, self->make_response_promise());
          self->delayed_send(self, 2ms, Answer::value);
          return waiting->back().second;
        },
        [&, waiting](Answer) {
          --now;
          auto [rows, promise] = std::move(waiting->front());
          waiting->pop_front();
          promise.deliver(MappedBatch{doubled(rows)});
        },
    };
  });
  auto stream = rows({slow}, {.name = "slow", .concurrency = 3}, 200).stream(test::small_blocks());
  EXPECT_EQ(test::drain(stream), expected(200));
  EXPECT_LE(most, 3);
  EXPECT_GE(most, 2);
}

TEST_F(DatasetActors, EndTheStreamWhenTheyAreDead) {
  const auto dead = system_.spawn(doubler);
  caf::anon_send_exit(dead, caf::exit_reason::kill);
  caf::scoped_actor self{system_};
  self->wait_for(dead);
  EXPECT_THAT(failure_of(rows({dead}), Errc::Aborted), AllOf(HasSubstr("stage double"), HasSubstr("dead"), HasSubstr(std::to_string(dead.id()))));
  const auto dies = system_.spawn([](caf::event_based_actor* actor) -> caf::behavior {
    return {[actor](const MapBatch&) -> caf::result<MappedBatch> {
      actor->quit(caf::exit_reason::user_shutdown);
      return actor->make_response_promise();
    }};
  });
  EXPECT_THAT(failure_of(rows({dies}), Errc::Aborted), HasSubstr("stage double"));
}

TEST_F(DatasetActors, EndTheStreamWhenTheyDoNotAnswerInTime) {
  const auto silent = system_.spawn([](caf::event_based_actor* self) -> caf::behavior {
    return {[self, kept = std::make_shared<std::vector<caf::response_promise>>()](const MapBatch&) -> caf::result<MappedBatch> {
      kept->push_back(self->make_response_promise());
      return kept->back();
    }};
  });
  EXPECT_THAT(failure_of(rows({silent}, {.name = "double", .deadline = 50ms}), Errc::DeadlinePassed), AllOf(HasSubstr("stage double"), HasSubstr("50 ms")));
  caf::anon_send_exit(silent, caf::exit_reason::kill);
}

TEST_F(DatasetActors, SayWhatTheyAnsweredInstead) {
  const auto wrong = system_.spawn([]() -> caf::behavior { return {[](const MapBatch&) { return 3; }}; });
  EXPECT_THAT(failure_of(rows({wrong}), Errc::DataMalformed), HasSubstr("MappedBatch"));
  const auto error = system_.spawn([]() -> caf::behavior {
    return {[](const MapBatch&) -> caf::result<MappedBatch> { return caf::make_error(caf::sec::runtime_error, "no such word"); }};
  });
  EXPECT_THAT(failure_of(rows({error}), Errc::DataMalformed), AllOf(HasSubstr("stage double"), HasSubstr("no such word")));
}

TEST_F(DatasetActors, RefuseWhatCannotBe) {
  EXPECT_THROW((void)rows({}), Failure);
  EXPECT_THROW((void)rows({caf::actor{}}), Failure);
  EXPECT_THROW((void)rows({system_.spawn(doubler)}, {.name = ""}), Failure);
  EXPECT_THROW((void)rows({system_.spawn(doubler)}, {.name = "x", .concurrency = 0}), Failure);
}

}  // namespace
}  // namespace troupe
