// What a run on nodes does with disks: its own, and those of nodes.
#include "head_run.hpp"
#include "node_machine.hpp"

#include <troupe/run_storage.hpp>

#include <boost/asio/post.hpp>

#include <future>

namespace troupe::detail {

namespace asio = boost::asio;

std::string place_of_whole(const std::string& directory) { return host_name() + ":" + directory; }

template <class Work>
auto HeadRun::on_thread(Work work) {
  std::promise<decltype(work())> told;
  auto future = told.get_future();
  asio::post(head_.io(), [&] { told.set_value(work()); });
  return future.get();
}

LinkDisk HeadRun::disk_of(const std::string& node) {
  return {"node " + node, id_, [this, node](const auto& make) {
            auto asked = questions_.add(node);
            asio::post(head_.io(), [self = shared_from_this(), node, id = asked.id, message = make(asked.id)] {
              const auto found = self->head_.nodes().find(node);
              if (found != self->head_.nodes().end()) return found->second->send(message);
              self->questions_.fail(node, Errc::NodeLost, "node " + node + " is away");
            });
            return asked;
          }};
}

void HeadRun::warn(const std::string& text) {
  asio::post(head_.io(), [self = shared_from_this(), text] { self->warn_now(text); });
}

void HeadRun::warn_now(const std::string& text) {
  if (orders_.warn) orders_.warn(text);
  else early_warnings_.push_back(text);
}

void HeadRun::take_orders(NodeProcesses::Orders orders) {
  orders_ = std::move(orders);
  for (const auto& text : std::exchange(early_warnings_, {})) warn_now(text);
}

std::vector<std::string> HeadRun::node_names() {
  return on_thread([this] {
    std::vector<std::string> names;
    for (const auto& [name, node] : head_.nodes()) names.push_back(name);
    return names;
  });
}

HeadRun::Places HeadRun::places_of(const std::vector<int>& ranks) {
  return on_thread([&] {
    Places places;
    for (const auto rank : ranks) {
      if (rank < 0 || static_cast<std::size_t>(rank) >= node_of_.size()) continue;
      const auto& node = node_of_[static_cast<std::size_t>(rank)];
      if (!own_disks_.contains(node->name)) continue;
      places.on_own_disk[node->name].push_back(rank);
      const auto known = head_.nodes().find(node->name);
      if (known == head_.nodes().end() || known->second != node) places.lost = node->name;
    }
    return places;
  });
}

void HeadRun::drop_parts(const std::vector<std::string>& directories) {
  asio::post(head_.io(), [self = shared_from_this(), directories] {
    for (const auto& [name, node] : self->head_.nodes()) {
      if (self->own_disks_.contains(name) && node->runs.contains(self->id_)) node->send(DropParts{self->id_, self->directory_, directories});
    }
  });
}

void HeadRun::told_of_disk(const HeadNode& node, const DiskTold& news) {
  if (news.attempt != attempt_) return;
  if (news.is_own && own_disks_.insert(node.name).second) {
    warn_now("node " + node.name + " does not see " + directory_ + ": it keeps its part of checkpoints on its own disk, the whole is on this host's");
  }
  if (!news.is_own) own_disks_.erase(node.name);
  if (news.is_bringing) bringing_.insert(node.name);
  else bringing_.erase(node.name);
  num_bringing_ = bringing_.size();
  for (const auto& warning : news.warnings) warn_now(warning);
}

// ---- what nodes read ----------------------------------------------------------------------------------------

void HeadRun::answer(const std::shared_ptr<HeadNode>& node, const ReadFile& question) {
  asio::post(head_.reads(), [self = shared_from_this(), node, question] { node->send(self->read_for(node->name, question)); });
}

FileRead HeadRun::read_for(const std::string& asker, const ReadFile& question) {
  if (!is_checkpoint_file(question.path)) {
    return refusal_of(question, Failure{Errc::ProtocolError, "'" + question.path + "' is no file of a checkpoint"});
  }
  const auto path = on_thread([this] { return directory_; }) + "/" + question.path;
  auto answer = read_file(question, path);
  if (!question.has_digest || (answer.error == Errc::Ok && is_piece({{}, question.begin, question.length, question.digest}, answer.bytes))) return answer;
  std::string bytes;
  if (take_from_others(asker, question, path, bytes)) return {question.run, question.id, Errc::Ok, std::move(bytes)};
  return refusal_of(question, Failure{Errc::FileCorrupt, path + ": bytes " + std::to_string(question.begin) + " to " + std::to_string(question.begin + question.length) +
                                                      " are damaged, and no node that is here has them"});
}

// The head's own are mended with them.
bool HeadRun::take_from_others(const std::string& asker, const ReadFile& question, const std::string& path, std::string& bytes) {
  const FilePiece piece{std::filesystem::path{path}.filename().string(), question.begin, question.length, question.digest};
  for (const auto& node : node_names()) {
    if (node == asker) continue;
    try {
      auto disk = disk_of(node);
      disk.read(std::filesystem::path{path}.parent_path().string(), {&piece, 1}, [&](const auto&, std::string_view got) { bytes = got; });
      warn(path + ": bytes " + std::to_string(question.begin) + " to " + std::to_string(question.begin + question.length) + " were damaged on this host's disk; node " +
           node + "'s were taken");
      const auto file = real_file_system().open(path, FileSystem::Access::Write);
      file->write(std::as_bytes(std::span{bytes}), question.begin);
      file->sync();
      return true;
    } catch (const std::exception&) {
      if (!bytes.empty()) return true;  // the disk does not take them
    }
  }
  return false;
}

}  // namespace troupe::detail
