#include "node_storage.hpp"

#include <algorithm>
#include <fstream>
#include <set>
#include <tuple>

namespace troupe::detail {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t manifest_limit = std::uint64_t{1} << 30, note_limit = 1 << 20;

bool is_below(const fs::path& path, const fs::path& directory) {
  const auto relative = path.lexically_normal().lexically_relative(directory);
  return !relative.empty() && relative != "." && *relative.begin() != "..";
}

/// One checkpoint's commit, where the ranks of some nodes wrote to other disks.
class Gathering {
 public:
  Gathering(HeadRun& run, fs::path directory, const CompleteCheckpoint& checkpoint, const HeadRun::Places& places)
      : run_(run), directory_(std::move(directory)), places_(places), here_(checkpoint) {}

  CompleteCheckpoint bring() {
    for (const auto& [node, ranks] : places_.on_own_disk) {
      for (const auto rank : ranks) bring(node, rank);
    }
    note_.whole = place_of_whole(directory_.string());
    note_.history = history_of(directory_);
    note_.ranks = places_.on_own_disk;
    const auto& [node, ranks] = *places_.on_own_disk.begin();
    real_file_system().write_atomically(fs::path{here_.directories.at(ranks.front())} / nodes_name, to_text(note_));
    return here_;
  }

  /// A node that does not keep its part costs nothing but time, later.
  void keep() {
    std::vector<std::tuple<std::string, LinkDisk, Questions::Asked>> asked;
    for (const auto& [node, directories] : brought_) {
      KeepPart order{run_.id(), 0, here_.index, directory_.string(), {}, to_text(note_)};
      for (const auto& [theirs, ours] : directories) order.directories.push_back(theirs);
      auto disk = run_.disk_of(node);
      auto question = disk.ask([&](std::uint64_t id) {
        order.id = id;
        return order;
      });
      asked.emplace_back(node, std::move(disk), std::move(question));
    }
    for (auto& [node, disk, question] : asked) {
      try {
        disk.wait_until_kept(question, checkpoint_name(here_.index));
      } catch (const Failure& failure) {
        run_.warn("node " + node + " keeps no part of " + checkpoint_name(here_.index) + ": " + failure.what());
      }
    }
  }

 private:
  void bring(const std::string& node, int rank) {
    auto& directory = here_.directories.at(rank);
    const auto theirs = fs::path{directory}.lexically_normal();
    const auto staging = directory_ / ".staging";
    const auto [found, is_new] = brought_[node].try_emplace(theirs.string(), theirs);
    auto& ours = found->second;
    if (is_new) {
      if (!is_below(theirs, staging)) ours = staging / ("node_" + node + "_" + std::to_string(rank) + "_" + std::to_string(here_.index));
      auto disk = run_.disk_of(node);
      gather_part(disk, theirs.string(), ours, "node " + node);
    }
    directory = ours;
  }

  HeadRun& run_;
  const fs::path directory_;
  const HeadRun::Places& places_;
  CompleteCheckpoint here_;
  PartNote note_;
  std::map<std::string, std::map<std::string, fs::path>> brought_;  // by node: where its directories are here
};

/// Disks of several nodes that have parts of the same: the first that has a piece gives it.
class DisksOfNodes final : public PeerDisk {
 public:
  DisksOfNodes(HeadRun& run, std::vector<std::string> nodes) : run_(run), nodes_(std::move(nodes)) {}

  std::vector<Entry> list(const std::string&) override { return {}; }
  void read(const std::string& directory, std::span<const FilePiece> pieces, const std::function<void(const FilePiece&, std::string_view)>& take) override {
    for (const auto& piece : pieces) read_one(directory, piece, take);
  }

 private:
  void read_one(const std::string& directory, const FilePiece& piece, const std::function<void(const FilePiece&, std::string_view)>& take) {
    std::string why, bytes;
    for (std::size_t tried = 0; tried < nodes_.size() && bytes.empty(); ++tried) {
      const auto place = (first_ + tried) % nodes_.size();
      try {
        auto disk = run_.disk_of(nodes_[place]);
        disk.read(directory, {&piece, 1}, [&](const auto&, std::string_view got) { bytes = got; });
        first_ = place;  // its next pieces are there, too
      } catch (const Failure& failure) {
        why += std::string("; ") + failure.what();
      }
    }
    if (!bytes.empty()) return take(piece, bytes);
    throw Failure{Errc::FileNotFound, piece.file + ": bytes " + std::to_string(piece.begin) + " to " + std::to_string(piece.begin + piece.length) +
                                          " are on no disk that is here" + why};
  }

  HeadRun& run_;
  const std::vector<std::string> nodes_;
  std::size_t first_ = 0;
};

/// Before a run goes on: makes its newest checkpoint whole on this disk, if nodes have what it lacks.
class Mending {
 public:
  Mending(HeadRun& run, fs::path directory) : run_(run), directory_(std::move(directory)) {}

  void mend() {
    std::ifstream{directory_ / history_name} >> history_;
    find();
    if (nodes_with_.empty()) return;
    std::set<std::uint64_t, std::greater<>> indices;
    for (const auto& [index, nodes] : nodes_with_) indices.insert(index);
    for (const auto& entry : fs::directory_iterator{directory_}) {
      if (const auto index = index_of_checkpoint(entry.path().filename().string())) indices.insert(*index);
    }
    for (const auto index : indices) {
      if (make_whole(index)) break;
    }
    (void)history_of(directory_, history_);
  }

 private:
  /// Which nodes that do not see this directory have which checkpoints of this history, whole or in part.
  void find() {
    const auto proof = directory_ / proof_name;
    std::ofstream{proof, std::ios::trunc} << run_.proof() << "\n";
    std::map<std::uint64_t, std::map<std::string, PartNote>> found;
    for (const auto& node : run_.node_names()) {
      try {
        auto disk = run_.disk_of(node);
        if (!sees(disk, proof)) find_on(node, disk, found);
      } catch (const Failure&) {
        // It has nothing of this run, or is no help.
      }
    }
    // A disk that is empty takes up the newest history.
    if (history_.empty() && !found.empty() && !has_checkpoints()) history_ = found.rbegin()->second.begin()->second.history;
    for (auto& [index, notes] : found) {
      for (auto& [node, note] : notes) {
        if (note.history != history_) continue;
        nodes_with_[index].push_back(node);
        owners_[index].merge(std::map{note.ranks});
      }
    }
  }

  void find_on(const std::string& node, LinkDisk& disk, std::map<std::uint64_t, std::map<std::string, PartNote>>& found) {
    for (const auto& entry : disk.list(directory_.string())) {
      const auto slash = entry.name.find('/');
      const auto index = index_of_checkpoint(entry.name.substr(0, slash));
      const auto file = slash == std::string::npos ? "" : entry.name.substr(slash + 1);
      if (!index || (file != part_note_name && file != nodes_name)) continue;
      const auto text = disk.read_all((directory_ / entry.name).string(), note_limit);
      found[*index].try_emplace(node, part_note_from_text(text, node));
    }
  }

  [[nodiscard]] bool has_checkpoints() const {
    return std::any_of(fs::directory_iterator{directory_}, fs::directory_iterator{},
                       [](const auto& entry) { return index_of_checkpoint(entry.path().filename().string()).has_value(); });
  }

  bool sees(LinkDisk& disk, const fs::path& proof) {
    try {
      return disk.read_all(proof.string(), 4096) == run_.proof() + "\n";
    } catch (const Failure&) {
      return false;
    }
  }

  bool make_whole(std::uint64_t index) {
    const auto name = checkpoint_name(index);
    const auto path = directory_ / name;
    try {
      DisksOfNodes nodes{run_, nodes_with_[index]};
      const bool was_here = fs::exists(path);
      const auto filled = fill_checkpoint(path, manifest_of(index), nodes, path.string(), {"", place_of_whole(directory_.string()), history_, {}});
      for (const auto& damage : filled.damaged) run_.warn((path / damage).string() + " were damaged on this host's disk; nodes' were taken");
      if (!was_here) run_.warn(name + " was not on this host's disk; it was made of nodes' parts");
      return true;
    } catch (const Failure& failure) {
      run_.warn(name + " cannot be made whole: " + failure.what() + owners_of(index) + "; an older one is taken");
      return false;
    }
  }

  std::string manifest_of(std::uint64_t index) {
    const auto path = directory_ / checkpoint_name(index) / manifest_name;
    std::string why;
    const auto parsed = [&](std::string bytes) {
      (void)manifest_from_bytes(std::as_bytes(std::span{bytes}), path.string());
      return bytes;
    };
    try {
      return parsed(real_file_system().read_all(path, manifest_limit));
    } catch (const Failure& failure) {
      why = failure.what();
    }
    for (const auto& node : nodes_with_[index]) {
      try {
        return parsed(run_.disk_of(node).read_all(path.string(), manifest_limit));
      } catch (const Failure& failure) {
        why += std::string("; ") + failure.what();
      }
    }
    throw Failure{Errc::FileNotFound, why};
  }

  /// Who has parts of it and is not here, in words.
  std::string owners_of(std::uint64_t index) {
    std::string missing;
    for (const auto& [owner, ranks] : owners_[index]) {
      if (!std::ranges::count(nodes_with_[index], owner)) missing += (missing.empty() ? "" : ", ") + owner;
    }
    return missing.empty() ? "" : "; node " + missing + ", which is not here, has a part of it";
  }

  HeadRun& run_;
  const fs::path directory_;
  std::string history_;
  std::map<std::uint64_t, std::vector<std::string>> nodes_with_;
  std::map<std::uint64_t, std::map<std::string, std::vector<int>>> owners_;
};

}  // namespace

StorageOnNodes::StorageOnNodes(const RunConfig& run, const std::function<void(const fs::path&)>& before_reading, std::shared_ptr<Head> head,
                               std::shared_ptr<HeadRun> processes)
    : RunStorage(run,
                 [&](const fs::path& directory) {
                   if (before_reading) before_reading(directory);
                   const bool is_elsewhere = run.storage_path.is_url();  // then the store is the truth
                   if (!is_elsewhere && run.node_storage == NodeStorage::Auto) Mending{*processes, directory}.mend();
                 }),
      head_(std::move(head)),
      run_(std::move(processes)) {}

CheckpointRecord StorageOnNodes::commit(const CompleteCheckpoint& checkpoint) {
  std::vector<int> ranks;
  for (const auto& [rank, directory] : checkpoint.directories) ranks.push_back(rank);
  const auto places = run_->places_of(ranks);
  if (places.on_own_disk.empty()) return RunStorage::commit(checkpoint);
  Gathering gathering{*run_, path(), checkpoint, places};
  CompleteCheckpoint here;
  try {
    if (!places.lost.empty()) throw Failure{Errc::NodeLost, "node " + places.lost + " was lost with its part"};
    here = gathering.bring();
  } catch (const Failure& failure) {
    if (failure.code() == Errc::AlreadyExists || failure.code() == Errc::InvalidArgument) throw;
    throw Failure{Errc::StorageUnavailable, failure.what()};
  }
  auto record = RunStorage::commit(here);
  gathering.keep();
  return record;
}

void StorageOnNodes::discard(const CompleteCheckpoint& checkpoint) {
  std::vector<std::string> directories;
  for (const auto& [rank, directory] : checkpoint.directories) {
    if (is_below(directory, path() / ".staging")) directories.push_back(directory);
  }
  run_->drop_parts(directories);
  RunStorage::discard(checkpoint);
}

void StorageOnNodes::remove(std::uint64_t index) {
  RunStorage::remove(index);
  run_->drop_parts({(path() / checkpoint_name(index)).string()});
}

}  // namespace troupe::detail
