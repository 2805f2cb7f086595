#include "node_disk.hpp"

#include <troupe/run_storage.hpp>

#include <boost/asio/post.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

namespace troupe::detail {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t manifest_limit = std::uint64_t{1} << 30;
constexpr auto lock_limit = 60s;

/// A network file system may show a new file a little later.
bool sees_proof(const OpenAttempt& order, int looks, const std::atomic<bool>& is_closed) {
  if (order.proof_path.empty()) return true;
  for (int look = 0; look < looks && !is_closed; ++look) {
    if (look > 0) std::this_thread::sleep_for(100ms);
    std::ifstream file{order.proof_path};
    std::string text;
    if (std::getline(file, text) && text == order.proof) return true;
  }
  return false;
}

/// Several agents may be on one disk.
class DirectoryLock {
 public:
  DirectoryLock(const std::string& directory, const std::atomic<bool>& is_closed) {
    const auto path = directory + "/.parts.lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) throw Failure{Errc::StorageUnavailable, "cannot open " + path};
    const auto deadline = std::chrono::steady_clock::now() + lock_limit;
    while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (is_closed || std::chrono::steady_clock::now() > deadline) {
        ::close(fd_);
        throw Failure{Errc::DeadlinePassed, path + " was held by another agent for " + std::to_string(lock_limit.count()) + " s"};
      }
      std::this_thread::sleep_for(10ms);
    }
  }
  ~DirectoryLock() { ::close(fd_); }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int fd_ = -1;
};

/// Checkpoints that the run no longer has. Those newer than all it has may be the only ones of their kind.
void drop_old(const OpenAttempt& order) {
  if (order.kept.empty()) return;
  const auto newest = std::ranges::max(order.kept);
  auto& files = real_file_system();
  for (const auto& entry : files.list(order.directory)) {
    const auto index = index_of_checkpoint(entry.name);
    if (index && *index < newest && !std::ranges::count(order.kept, *index)) files.remove_tree(order.directory + "/" + entry.name);
  }
}

}  // namespace

NodeDisk::NodeDisk(boost::asio::thread_pool& jobs, std::shared_ptr<HeadLine> head, std::uint64_t run, std::string node)
    : strand_(boost::asio::make_strand(jobs)), head_(std::move(head)), run_(run), node_(std::move(node)) {}

void NodeDisk::post(std::function<void()> job) { boost::asio::post(strand_, std::move(job)); }

LinkDisk NodeDisk::head_disk(Attempt attempt) {
  return {"the head", run_, [this, attempt](const auto& make) {
            if (attempt != 0 && aborted_ == attempt) throw Failure{Errc::Aborted, "the attempt was ended"};
            auto asked = questions_.add({});
            head_->send(make(asked.id));
            return asked;
          }};
}

bool NodeDisk::take(NodeMessage& message) {
  if (auto* answer = std::get_if<FileRead>(&message)) {
    const auto id = answer->id;
    questions_.answered(id, std::move(message));
  } else if (const auto* keeping = std::get_if<KeepPart>(&message)) {
    post([self = shared_from_this(), order = *keeping] { self->keep(order); });
  } else if (const auto* dropping = std::get_if<DropParts>(&message)) {
    post([self = shared_from_this(), order = *dropping] { self->drop(order); });
  } else {
    return false;
  }
  return true;
}

void NodeDisk::abort(Attempt attempt) {
  aborted_ = attempt;
  questions_.fail({}, Errc::Aborted, "the attempt was ended");
}

void NodeDisk::close() {
  is_closed_ = true;
  questions_.close("the run has ended");
}

// ---- an attempt begins --------------------------------------------------------------------------------------

void NodeDisk::open(const OpenAttempt& order, std::function<void(const std::string&)> done) {
  post([self = shared_from_this(), order, done = std::move(done)] {
    const bool is_shared = sees_proof(order, self->is_own_ ? 1 : 30, self->is_closed_);
    self->is_own_ = !is_shared;
    if (is_shared) {
      self->head_->send(DiskTold{order.run, order.attempt, false, false, {}});
      return done({});
    }
    if (order.must_share) {
      return done("node " + self->node_ + " does not see " + order.directory +
                  ": RunConfig.storage_path must be a directory that all nodes share (NFS, Lustre, …), at the same path; of an s3:// run, staging_path must be. "
                  "With RunConfig.node_storage = NodeStorage::Auto nodes use disks of their own");
    }
    DiskTold news{order.run, order.attempt, true, !order.resume.empty(), {}};
    self->head_->send(news);
    std::string refusal;
    try {
      self->prepare(order, news.warnings);
    } catch (const std::exception& failure) {
      refusal = "node " + self->node_ + ": " + (order.resume.empty() ? "" : order.resume + " cannot be made whole here: ") + failure.what();
    }
    news.is_bringing = false;
    self->head_->send(news);
    done(refusal);
  });
}

void NodeDisk::prepare(const OpenAttempt& order, std::vector<std::string>& warnings) {
  auto& files = real_file_system();
  files.make_directories(order.directory);
  const DirectoryLock lock{order.directory, is_closed_};
  files.remove_tree(order.directory + "/.staging");
  files.make_directories(order.directory + "/.staging");
  drop_old(order);
  if (order.resume.empty()) return;
  auto head = head_disk(order.attempt);
  const auto manifest = head.read_all(order.resume + "/" + manifest_name, manifest_limit);
  const auto filled = fill_checkpoint(order.directory + "/" + order.resume, manifest, head, order.resume, {node_, order.whole, order.history, {}});
  for (const auto& damage : filled.damaged) {
    warnings.push_back("node " + node_ + ": " + order.directory + "/" + order.resume + "/" + damage + " were damaged on its disk; the head's were taken");
  }
}

// ---- a checkpoint is committed ------------------------------------------------------------------------------

void NodeDisk::keep(const KeepPart& order) {
  PartKept news{order.run, order.id, Errc::Ok, {}};
  try {
    const DirectoryLock lock{order.directory, is_closed_};
    auto head = head_disk(0);
    std::map<std::string, std::string> files;
    for (const auto* name : {manifest_name, manifest_json_name, nodes_name}) files[name] = head.read_all(checkpoint_name(order.index) + "/" + name, manifest_limit);
    auto note = part_note_from_text(order.note, "the head's note");
    note.node = node_;
    keep_part(order.directory, order.index, order.directories, files, note);
  } catch (const std::exception& error) {
    const auto* failure = dynamic_cast<const Failure*>(&error);
    news.error = failure ? failure->code() : Errc::StorageUnavailable;
    news.text = error.what();
  }
  head_->send(news);
}

// What cannot be removed is tried again when the next attempt begins.
void NodeDisk::drop(const DropParts& order) {
  for (const auto& directory : order.directories) {
    const auto relative = fs::path{directory}.lexically_normal().lexically_relative(order.directory);
    if (relative.empty() || relative == "." || *relative.begin() == "..") continue;
    try {
      const DirectoryLock lock{order.directory, is_closed_};
      real_file_system().remove_tree(directory);
    } catch (const std::exception&) {
    }
  }
}

}  // namespace troupe::detail
