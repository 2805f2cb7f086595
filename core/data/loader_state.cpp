#include <nlohmann/json.hpp>
#include <string>
#include <troupe/errors.hpp>

#include "loader_impl.hpp"

namespace troupe {

std::string DataLoader::state_dict() const {
  const auto at = position();
  const auto& i = *impl_;
  nlohmann::ordered_json state{{"data_loader", 1},
                               {"epoch", at.epoch},
                               {"num_batches", at.num_batches},
                               {"first_sample", at.first_sample},
                               {"samples_consumed", samples_consumed()},
                               {"total_batch_size", total_batch_size()},
                               {"rank", i.sharding.rank},
                               {"world_size", i.sharding.world_size},
                               {"own", has_own_position()},
                               {"ahead", at.ahead},
                               {"stream", to_hex(at.stream)}};
  if (i.seed && !i.seedable) state["seed"] = *i.seed;
  return state.dump();
}

void DataLoader::load_state_dict(std::string_view bytes) {
  LoaderPosition at;
  std::int64_t consumed = 0, total = 0;
  int rank = 0, world_size = 1;
  bool own = false;
  std::optional<std::uint64_t> seed;
  try {
    const auto state = nlohmann::json::parse(bytes);
    if (state.at("data_loader") != 1) throw Failure{Errc::DataMalformed, "it is of version " + state.at("data_loader").dump() + ", not 1"};
    at = {state.at("epoch"), state.at("num_batches"), state.at("first_sample"), state.at("ahead"), from_hex(state.at("stream")).value()};
    consumed = state.at("samples_consumed");
    total = state.at("total_batch_size");
    rank = state.at("rank");
    world_size = state.at("world_size");
    own = state.at("own");
    if (state.contains("seed")) seed = state.at("seed").get<std::uint64_t>();
  } catch (const std::exception& error) {
    throw Failure{Errc::DataMalformed, std::string{"DataLoader: these bytes are no state of a loader: "} + error.what()};
  }
  auto& i = *impl_;
  const bool same = rank == i.sharding.rank && world_size == i.sharding.world_size && total == total_batch_size();
  if ((own || i.own_stream) && !same) {
    throw Failure{Errc::Unsupported, "DataLoader: the state is of rank " + std::to_string(rank) + " of " + std::to_string(world_size) + " alone (total batch size " +
                                         std::to_string(total) + "), and this is rank " + std::to_string(i.sharding.rank) + " of " +
                                         std::to_string(i.sharding.world_size) + " (" + std::to_string(total_batch_size()) +
                                         "): without in_order, or with a data set that shards itself, only the same ranks go on"};
  }
  if (seed && options().shuffle && !i.seedable) i.use_seed(*seed);
  if (same || (total == total_batch_size() && !i.has_lists())) return resume(at);
  if (at.stream.empty()) return resume_after(at.epoch, consumed);
  resume({at.epoch, 0, consumed, {}, at.stream});
}

}  // namespace troupe
