#include "iterator_state.hpp"

#include <troupe/errors.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>

namespace troupe {

namespace {

using Json = nlohmann::json;

/// A position as it was saved: an epoch's beginning, or what is left of one.
struct Saved {
  std::int64_t epoch = 0;
  std::vector<DatasetCursor> cursors;  ///< one: the rank's own; more: those of all ranks of another group, of which nothing was used yet
};

Saved parse(const std::string& bytes, const std::string& name, std::size_t rank) {
  const auto what = "the position of data set '" + name + "' on rank " + std::to_string(rank);
  try {
    const auto json = Json::parse(bytes);
    if (json.at("version").get<int>() != 1) throw Failure{Errc::Unsupported, what + " was saved by a newer Troupe"};
    Saved saved;
    saved.epoch = json.at("epoch").get<std::int64_t>();
    for (const auto& text : json.at("cursors")) saved.cursors.push_back(DatasetCursor::from_json(text.get<std::string>()));
    return saved;
  } catch (const Json::exception& error) {
    throw Failure{Errc::FileCorrupt, what + ": " + error.what()};
  }
}

std::string to_text(const Saved& saved) {
  Json cursors = Json::array();
  for (const auto& cursor : saved.cursors) cursors.push_back(cursor.to_json());
  return Json{{"version", 1}, {"epoch", saved.epoch}, {"cursors", std::move(cursors)}}.dump();
}

}  // namespace

std::optional<std::int64_t> DataIterator::Batches::Shared::real_rows() const noexcept {
  if (!current || setup.split.world_size == 1 || setup.split.equal != SplitEqual::Pad) return std::nullopt;
  return rows_in_hand - padding_in_hand;
}

std::string DataIterator::Batches::Shared::position() const {
  if (!at) return to_text({next_epoch, next_cursors});
  if (at_beginning) return to_text({at->epoch, {}});
  return to_text({at->epoch, {*at}});
}

void DataIterator::Batches::Shared::resume(const std::vector<std::string>& positions) {
  std::vector<Saved> saved;
  for (std::size_t r = 0; r < positions.size(); ++r) saved.push_back(parse(positions[r], setup.name, r));
  if (saved.empty()) throw Failure{Errc::InvalidArgument, "data set '" + setup.name + "': there is no position to go on from"};
  const auto own = static_cast<std::size_t>(setup.split.rank);
  const auto world = static_cast<std::size_t>(setup.split.world_size);
  const auto go_on = [&](Saved from) {
    next_epoch = from.epoch;
    next_cursors = std::move(from.cursors);
    at.reset();
  };
  const bool had_all_rows = !saved[0].cursors.empty() && saved[0].cursors[0].world_size == 1;
  if (world == 1 && had_all_rows) return go_on(std::move(saved[0]));   // every rank goes through all rows
  if (saved[0].cursors.size() > 1) return go_on(std::move(saved[0]));  // not begun since it was dealt anew: the same on all ranks
  if (saved.size() == world) return go_on(std::move(saved[own]));
  const auto epoch = std::min_element(saved.begin(), saved.end(), [](const auto& a, const auto& b) { return a.epoch < b.epoch; })->epoch;
  const auto begun = std::find_if(saved.begin(), saved.end(), [&](const auto& s) { return s.epoch == epoch && !s.cursors.empty(); });
  if (begun == saved.end()) return go_on({epoch, {}});
  Saved all{epoch, {}};
  for (std::size_t r = 0; r < saved.size(); ++r) {
    if (saved[r].epoch == epoch && saved[r].cursors.empty()) {
      throw Failure{Errc::InvalidArgument, "data set '" + setup.name + "': rank " + std::to_string(r) + " had not begun epoch " + std::to_string(epoch) +
                                               ", which others had; ranks must be in step where they save"};
    }
    auto cursor = saved[r].epoch == epoch ? saved[r].cursors[0] : begun->cursors[0];
    if (saved[r].epoch != epoch) cursor.remaining.clear();  // it was through with the epoch
    cursor.rank = static_cast<int>(r);
    all.cursors.push_back(std::move(cursor));
  }
  go_on(std::move(all));
}

DatasetStream DataIterator::Batches::Shared::begin_epoch(const IterBatchesOptions& options) {
  auto rows = dataset;
  if (options.local_shuffle_buffer_size > 0) {
    rows = rows.shuffle_windows(std::max(options.local_shuffle_buffer_size, options.batch_size), options.local_shuffle_seed.value_or(0));
  }
  const StreamOptions with{.split = setup.split, .epoch = next_epoch, .num_epochs = 1, .execution = setup.execution};
  at_beginning = next_cursors.empty();
  auto stream = at_beginning ? rows.stream(with) : rows.resume(next_cursors, with);
  at.emplace();
  if (at_beginning) at->epoch = next_epoch;
  else *at = stream.cursor();
  next_epoch = at->epoch;
  next_cursors.clear();
  return stream;
}

}  // namespace troupe
