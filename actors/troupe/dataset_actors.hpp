#pragma once

#include <troupe/dataset/dataset.hpp>

#include <caf/actor.hpp>
#include <caf/actor_system.hpp>
#include <caf/allowed_unsafe_message_type.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace troupe {

/// Stream to a stage's actor: work on these rows. Answered by MappedBatch, or an error. What comes of the same rows must be the same each time.
struct MapBatch {
  std::shared_ptr<arrow::RecordBatch> rows;
};

struct MappedBatch {
  std::shared_ptr<arrow::RecordBatch> rows;
};

struct MapOnOptions {
  std::string name;                ///< of the stage, in messages and stats
  int concurrency = 2;             ///< credits: batches that its actors have been sent and not answered, all of them together
  std::chrono::milliseconds deadline{60'000};  ///< of one answer
  std::int64_t batch_size = 0;     ///< rows a message has at most; 0: a block as it comes
  bool changes_num_rows = false;   ///< an answer may have another number of rows than its question
  std::shared_ptr<arrow::Schema> schema = {};  ///< of the answers; nothing: seen from the first
};

/// A step of `dataset` that users' own actors do: `Dataset::map_batches` by message. Batches go to them in turn, and come out in the order in which
/// they went in. At most `concurrency` are on their way, so a slow actor slows who reads for it, and its mailbox stays short.
///
/// An actor that is dead, does not answer in time, or answers with an error or with something else ends the stream with a Failure that names the stage
/// and the actor: {Aborted}, {DeadlinePassed}, {DataMalformed}. A handler that may block belongs to an actor spawned with `caf::detached`.
///
/// @param system must outlive the data set; all its streams must be gone before it.
[[nodiscard]] Dataset map_batches_on(const Dataset& dataset, caf::actor_system& system, std::vector<caf::actor> actors, MapOnOptions options);
[[nodiscard]] Dataset map_batches_on(const Dataset& dataset, caf::actor_system& system, caf::actor actor, MapOnOptions options);

}  // namespace troupe

CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::MapBatch)
CAF_ALLOW_UNSAFE_MESSAGE_TYPE(troupe::MappedBatch)
