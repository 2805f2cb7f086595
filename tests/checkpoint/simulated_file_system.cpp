#include "simulated_file_system.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

namespace troupe::test {

namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kTear = 2048;  // bytes: what lasts whole or not at all

[[noreturn]] void fail(const char* what, const fs::path& path, int error) {
  if (error == ENOENT) throw Failure{Errc::FileNotFound, path.string() + ": there is no such file or directory"};
  throw Failure{Errc::StorageUnavailable, std::string("cannot ") + what + " " + path.string() + ": " + std::strerror(error)};
}

}  // namespace

class SimulatedFile final : public File {
 public:
  SimulatedFile(SimulatedFileSystem& disk, fs::path path, int node) : disk_(disk), path_(std::move(path)), node_(node) {}

  std::uint64_t size() override {
    const std::lock_guard lock{disk_.mutex_};
    disk_.count(path_, "look at", false);
    return node().now.size();
  }
  void read(std::span<std::byte> into, std::uint64_t offset) override {
    const std::lock_guard lock{disk_.mutex_};
    disk_.count(path_, "read", false);
    const auto& bytes = node().now;
    if (offset > bytes.size() || into.size() > bytes.size() - offset) throw Failure{Errc::FileCorrupt, path_.string() + ": ends too early"};
    if (!into.empty()) std::memcpy(into.data(), bytes.data() + offset, into.size());
  }
  void set_size(std::uint64_t size) override {
    const std::lock_guard lock{disk_.mutex_};
    disk_.count(path_, "set the size of", true);
    change({0, {}, size});
  }
  void write(std::span<const std::byte> bytes, std::uint64_t offset) override {
    const std::lock_guard lock{disk_.mutex_};
    const std::string text{reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    try {
      disk_.count(path_, "write", true);
    } catch (const Failure&) {
      change({offset, text.substr(0, text.size() / 2), {}});
      throw;
    }
    change({offset, text, {}});
  }
  void begin_write(int slot, std::span<const std::byte> pages, std::uint64_t offset) override {
    const bool whole_pages =
        reinterpret_cast<std::uintptr_t>(pages.data()) % page_bytes == 0 && pages.size() % page_bytes == 0 && offset % page_bytes == 0;
    if (!whole_pages || under_way_[slot]) throw std::logic_error{"no whole pages, or a slot in use"};
    under_way_[slot] = {pages, offset};
  }
  void wait_write(int slot) override {
    if (!under_way_[slot]) return;
    const auto [pages, offset] = *std::exchange(under_way_[slot], {});
    write(pages, offset);  // as late as can be: memory reused too early shows
  }
  void sync() override {
    const std::lock_guard lock{disk_.mutex_};
    try {
      disk_.count(path_, "fsync", true);
    } catch (const Failure&) {
      node().pending.clear();  // the system dropped the pages and calls them clean
      throw;
    }
    for (const auto& change : node().pending) SimulatedFileSystem::apply(node().durable, change);
    node().pending.clear();
  }

 private:
  SimulatedFileSystem::Node& node() { return disk_.nodes_[static_cast<std::size_t>(node_)]; }
  void change(SimulatedFileSystem::Change change) {
    SimulatedFileSystem::apply(node().now, change);
    node().pending.push_back(std::move(change));
  }

  SimulatedFileSystem& disk_;
  fs::path path_;
  int node_;
  std::map<int, std::optional<std::pair<std::span<const std::byte>, std::uint64_t>>> under_way_;
};

SimulatedFileSystem::SimulatedFileSystem() { nodes_.push_back({Kind::Directory, {}, {}, {}, {}, {}}); }

SimulatedFileSystem::SimulatedFileSystem(const SimulatedFileSystem& other)
    : nodes_(other.nodes_), moves_(other.moves_), num_changes_(other.num_changes_), num_operations_(other.num_operations_), can_exchange_(other.can_exchange_) {}

void SimulatedFileSystem::apply(std::string& bytes, const Change& change) {
  if (change.size) return bytes.resize(*change.size, '\0');
  if (bytes.size() < change.offset + change.bytes.size()) bytes.resize(change.offset + change.bytes.size(), '\0');
  bytes.replace(change.offset, change.bytes.size(), change.bytes);
}

void SimulatedFileSystem::count(const fs::path& path, const char* what, bool changes) {
  if (stopped_ || (changes && stop_at_ == num_changes_)) {
    stopped_ = true;
    throw Stopped{};
  }
  num_changes_ += changes ? 1 : 0;
  if (fail_at_ == num_operations_++) {
    failed_ = true;
    fail(what, path, error_);
  }
}

std::optional<int> SimulatedFileSystem::find(const fs::path& path) const {
  int at = 0;
  for (const auto& part : path.lexically_normal().relative_path()) {
    if (part.empty()) continue;
    const auto& node = nodes_[static_cast<std::size_t>(at)];
    const auto found = node.entries.find(part.string());
    if (node.kind != Kind::Directory || found == node.entries.end()) return std::nullopt;
    at = found->second;
  }
  return at;
}

int SimulatedFileSystem::need(const fs::path& path, const char* what) const {
  const auto found = find(path);
  if (!found) fail(what, path, ENOENT);
  return *found;
}

SimulatedFileSystem::Place SimulatedFileSystem::place_of(const fs::path& path, const char* what) const {
  return {need(path.parent_path(), what), path.filename().string()};
}

int SimulatedFileSystem::add(const Place& place, Kind kind) {
  const int node = static_cast<int>(nodes_.size());
  nodes_.push_back({kind, {}, {}, {}, {}, {}});
  move({{}, place, node});
  return node;
}

void SimulatedFileSystem::move(Move move) {
  if (move.from) nodes_[static_cast<std::size_t>(move.from->directory)].entries.erase(move.from->name);
  if (move.back) nodes_[static_cast<std::size_t>(move.from->directory)].entries[move.from->name] = *move.back;
  if (move.to) nodes_[static_cast<std::size_t>(move.to->directory)].entries[move.to->name] = move.node;
  moves_.push_back(std::move(move));
}

void SimulatedFileSystem::keep(const Move& move) {
  const auto entries = [&](const Place& place) -> auto& { return nodes_[static_cast<std::size_t>(place.directory)].durable_entries; };
  if (move.from) entries(*move.from).erase(move.from->name);
  if (move.back) entries(*move.from)[move.from->name] = *move.back;
  if (move.to) entries(*move.to)[move.to->name] = move.node;
}

std::unique_ptr<File> SimulatedFileSystem::open(const fs::path& path, Access access) {
  const std::lock_guard lock{mutex_};
  auto node = find(path);
  count(path, access == Access::Read ? "open" : "make", !node && access == Access::Write);
  if (!node && access == Access::Read) fail("open", path, ENOENT);
  if (!node) node = add(place_of(path, "make"), Kind::File);
  if (nodes_[static_cast<std::size_t>(*node)].kind != Kind::File) fail("open", path, ELOOP);
  return std::make_unique<SimulatedFile>(*this, path, *node);
}

std::optional<FileSystem::Kind> SimulatedFileSystem::kind(const fs::path& path) {
  const std::lock_guard lock{mutex_};
  count(path, "look at", false);
  const auto found = find(path);
  return found ? std::optional{nodes_[static_cast<std::size_t>(*found)].kind} : std::nullopt;
}

std::vector<FileSystem::Entry> SimulatedFileSystem::list(const fs::path& directory) {
  const std::lock_guard lock{mutex_};
  count(directory, "list", false);
  std::vector<Entry> entries;
  for (const auto& [name, node] : nodes_[static_cast<std::size_t>(need(directory, "list"))].entries) {
    entries.push_back({name, nodes_[static_cast<std::size_t>(node)].kind});
  }
  return entries;
}

void SimulatedFileSystem::make_directory(const fs::path& path) {
  const std::lock_guard lock{mutex_};
  const auto found = find(path);
  count(path, "make directory", !found);
  if (!found) add(place_of(path, "make directory"), Kind::Directory);
  else if (nodes_[static_cast<std::size_t>(*found)].kind != Kind::Directory) fail("make directory", path, EEXIST);
}

void SimulatedFileSystem::rename(const fs::path& from, const fs::path& to) {
  const std::lock_guard lock{mutex_};
  count(from, "rename", true);
  const int node = need(from, "rename");
  const auto target = find(to);
  if (target && !nodes_[static_cast<std::size_t>(*target)].entries.empty()) fail("rename", to, ENOTEMPTY);
  move({place_of(from, "rename"), place_of(to, "rename"), node});
}

bool SimulatedFileSystem::exchange(const fs::path& one, const fs::path& other) {
  const std::lock_guard lock{mutex_};
  count(one, "exchange", can_exchange_);
  if (can_exchange_) move({place_of(one, "exchange"), place_of(other, "exchange"), need(one, "exchange"), need(other, "exchange")});
  return can_exchange_;
}

void SimulatedFileSystem::remove_file(const fs::path& path) {
  const std::lock_guard lock{mutex_};
  count(path, "remove", true);
  const int node = need(path, "remove");
  if (nodes_[static_cast<std::size_t>(node)].kind == Kind::Directory) fail("remove", path, EISDIR);
  move({place_of(path, "remove"), {}, node});
}

void SimulatedFileSystem::remove_directory(const fs::path& path) {
  const std::lock_guard lock{mutex_};
  count(path, "remove", true);
  const int node = need(path, "remove");
  if (!nodes_[static_cast<std::size_t>(node)].entries.empty()) fail("remove", path, ENOTEMPTY);
  move({place_of(path, "remove"), {}, node});
}

void SimulatedFileSystem::sync_directory(const fs::path& path) {
  const std::lock_guard lock{mutex_};
  count(path, "fsync", true);
  const int directory = need(path, "fsync");
  std::vector<Move> rest;
  for (const auto& one : moves_) {
    const bool here = (one.from && one.from->directory == directory) || (one.to && one.to->directory == directory);
    if (!here) {
      rest.push_back(one);
      continue;
    }
    keep(one);
    // What led to a name that has been left must not come back to it.
    if (one.from) std::erase_if(rest, [&](const Move& before) { return before.to == one.from; });
  }
  moves_ = std::move(rest);
}

void SimulatedFileSystem::start_again() {
  stopped_ = failed_ = false;
  stop_at_.reset();
  fail_at_.reset();
}

void SimulatedFileSystem::restart(Kept kept, std::uint64_t seed) {
  const std::lock_guard lock{mutex_};
  std::mt19937_64 random{seed};
  const auto lasts = [&] { return kept == Kept::Everything || (kept == Kept::Parts && random() % 2 == 0); };
  for (const auto& one : moves_) {
    if (lasts()) keep(one);
  }
  for (auto& node : nodes_) {
    if (kept == Kept::Parts) std::ranges::shuffle(node.pending, random);
    for (const auto& change : node.pending) {
      if (change.size) {
        if (lasts()) apply(node.durable, change);
        continue;
      }
      for (std::uint64_t at = 0; at < change.bytes.size(); at += kTear) {
        if (lasts()) apply(node.durable, {change.offset + at, change.bytes.substr(at, kTear), {}});
      }
    }
    node.pending.clear();
    node.now = node.durable;
    node.entries = node.durable_entries;
  }
  moves_.clear();
  start_again();
}

void SimulatedFileSystem::settle() { restart(Kept::Everything); }

std::string& SimulatedFileSystem::bytes(const fs::path& file) { return nodes_[static_cast<std::size_t>(need(file, "read"))].now; }

std::vector<fs::path> SimulatedFileSystem::files_below(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : list(directory)) {
    if (entry.kind == Kind::Directory) {
      for (auto& file : files_below(directory / entry.name)) files.push_back(std::move(file));
    } else {
      files.push_back(directory / entry.name);
    }
  }
  return files;
}

void SimulatedFileSystem::make_link(const fs::path& path) { add(place_of(path, "link"), Kind::Other); }

void SimulatedFileSystem::write_file(const fs::path& path, std::string_view bytes) {
  const auto file = open(path, Access::Write);
  file->set_size(bytes.size());
  file->write(std::as_bytes(std::span{bytes}), 0);
}

}  // namespace troupe::test
