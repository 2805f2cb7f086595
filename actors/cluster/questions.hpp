#pragma once

#include "node_messages.hpp"

#include <troupe/node_parts.hpp>

#include <exception>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace troupe::detail {

/// Questions that were asked over links and wait for their answers. Threads: any.
class Questions {
 public:
  struct Asked {
    std::uint64_t id = 0;
    std::future<NodeMessage> answer;
  };
  /// A new one, to a node or, empty, to the head.
  [[nodiscard]] Asked add(const std::string& to);
  void answered(std::uint64_t id, NodeMessage message);
  /// Those who wait for `to` get a Failure.
  void fail(const std::string& to, Errc code, const std::string& why);
  /// All get one, and whoever asks later.
  void close(const std::string& why);

 private:
  struct Waiting {
    std::string to;
    std::promise<NodeMessage> promise;
  };
  std::mutex mutex_;
  std::uint64_t last_ = 0;
  std::map<std::uint64_t, Waiting> waiting_;
  std::optional<std::string> closed_;
};

/// A disk at the other end of a link. Every question has 30 seconds.
class LinkDisk final : public PeerDisk {
 public:
  /// Sends what `make` returns for the question's number.
  using Ask = std::function<Questions::Asked(const std::function<NodeMessage(std::uint64_t id)>& make)>;
  /// @param who for messages: "node b", "the head"
  LinkDisk(std::string who, std::uint64_t run, Ask ask) : who_(std::move(who)), run_(run), ask_(std::move(ask)) {}

  std::vector<Entry> list(const std::string& directory) override;
  void read(const std::string& directory, std::span<const FilePiece> pieces,
            const std::function<void(const FilePiece&, std::string_view)>& take) override;
  /// The whole of a file whose size nobody knows. Throws Failure{FileCorrupt} when it is longer than `limit`.
  [[nodiscard]] std::string read_all(const std::string& path, std::uint64_t limit);
  [[nodiscard]] Questions::Asked ask(const std::function<NodeMessage(std::uint64_t id)>& make) const { return ask_(make); }
  /// The answer to KeepPart. Throws what kept it from that.
  void wait_until_kept(Questions::Asked& asked, const std::string& what) const;

 private:
  template <class Answer>
  Answer wait_for(Questions::Asked& asked, const std::string& what) const;
  [[nodiscard]] Questions::Asked ask_for(const std::string& path, const FilePiece& piece) const;

  const std::string who_;
  const std::uint64_t run_;
  const Ask ask_;
};

/// What answers them, on any thread that may wait for the disk.
[[nodiscard]] FilesListed list_files(const ListFiles& question);
[[nodiscard]] FileRead read_file(const ReadFile& question, const std::string& path);

[[nodiscard]] FileRead refusal_of(const ReadFile& question, const std::exception& error);

}  // namespace troupe::detail
