#pragma once

#include <troupe/file_system.hpp>
#include <troupe/manifest.hpp>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// Checkpoints of machines that have disks of their own. One has the whole, the others keep what their writers wrote: their part, in a
// directory of the same name, as sparse as it is, with a note that says so. What a disk lacks or has damaged, it takes from others.

namespace troupe {

/// Bytes [begin, begin + length) of a file, of the digest where one is known.
struct FilePiece {
  std::string file;  ///< relative to the directory asked for
  std::uint64_t begin = 0;
  std::uint32_t length = 0;  ///< at most segment_bytes
  std::optional<std::uint64_t> digest;
};

/// Directories on the disk of another machine, or of several that hold parts of the same.
///
/// Threads: one caller at a time. Errors: Failure naming machine and file; every call ends within a deadline.
class PeerDisk {
 public:
  struct Entry {
    std::string name;  ///< relative
    std::uint64_t size = 0;
  };
  virtual ~PeerDisk() = default;
  /// The regular files below it.
  [[nodiscard]] virtual std::vector<Entry> list(const std::string& directory) = 0;
  /// Calls `take` with each piece, in order; those with a digest were verified, and none is shorter than asked. Few are in memory at once.
  virtual void read(const std::string& directory, std::span<const FilePiece> pieces,
                    const std::function<void(const FilePiece&, std::string_view)>& take) = 0;
};

/// Which machine's writers wrote a checkpoint: its file nodes.json. A part has the same as part.json, with its own name.
struct PartNote {
  std::string node;                              ///< whose part it is
  std::string whole;                             ///< who has the whole: "host:/path"
  std::string history;                           ///< random: of a run that began anew it is another
  std::map<std::string, std::vector<int>> ranks; ///< by node
};
constexpr const char* part_note_name = "part.json";
constexpr const char* nodes_name = "nodes.json";
[[nodiscard]] std::string to_text(const PartNote& note);
/// Of a directory; nothing when it is no part. Throws Failure{FileCorrupt}.
[[nodiscard]] std::optional<PartNote> read_part_note(const std::filesystem::path& directory, FileSystem& file_system = real_file_system());
/// Throws Failure{FileCorrupt} that begins with `what`.
[[nodiscard]] PartNote part_note_from_text(const std::string& text, const std::string& what);
/// "the part of node b (ranks 2, 3 of …); the whole is at …"
[[nodiscard]] std::string describe(const PartNote& note);

/// Everything that is wrong with a part, a sentence each: reads what its node's writers wrote. Does not throw for damage.
[[nodiscard]] std::vector<std::string> verify_part(const std::filesystem::path& directory, const PartNote& note, FileSystem& file_system = real_file_system());

/// Copies what writers left in `directory` on a peer's disk into `into`, where others' may be already: records first, of shared files the
/// ranges that those name, verified, and other files whole. All of it is durable when this returns.
/// @param who for messages: "node b"
/// Throws Failure{AlreadyExists} for a file of the same name with other bytes; {FileCorrupt}; what `from` throws.
void gather_part(PeerDisk& from, const std::string& directory, const std::filesystem::path& into, const std::string& who,
                 FileSystem& file_system = real_file_system());

/// Makes what writers left in `directories` below `run`/.staging the part of checkpoint `index`, durably. `files`: those that no rank
/// wrote and their bytes, manifest.troupe among them.
/// Directories elsewhere stay as they are.
void keep_part(const std::filesystem::path& run, std::uint64_t index, const std::vector<std::string>& directories, const std::map<std::string, std::string>& files,
               const PartNote& note, FileSystem& file_system = real_file_system());

struct Filled {
  std::uint64_t bytes = 0;           ///< that came from others
  std::vector<std::string> damaged;  ///< "model.safetensors: bytes 0 to 4096": what was here and was not what the manifest says
};
/// Makes the checkpoint at `directory` whole, durably: what is here and verifies stays, the rest comes from `from`'s directory `theirs`. One of another
/// manifest is replaced. What breaks off leaves a part, from which the next call goes on.
/// Throws Failure{FileCorrupt} for a manifest that is none; what `from` throws.
Filled fill_checkpoint(const std::filesystem::path& directory, std::string_view manifest, PeerDisk& from, const std::string& theirs, const PartNote& note,
                       FileSystem& file_system = real_file_system());

/// [begin, end) of the file as pieces without digests.
[[nodiscard]] std::vector<FilePiece> pieces_of(const std::string& file, std::uint64_t size);
/// 12 of "checkpoint_000012"; nothing for another name.
[[nodiscard]] std::optional<std::uint64_t> index_of_checkpoint(std::string_view name) noexcept;
/// Whether these are its bytes.
[[nodiscard]] bool is_piece(const FilePiece& piece, std::string_view bytes) noexcept;
/// "checkpoint_000012/model.safetensors": a path that a checkpoint's file may have below its run's directory.
[[nodiscard]] bool is_checkpoint_file(std::string_view path) noexcept;
/// Throws Failure{FileCorrupt} naming `who` when the bytes are not what the piece wants.
void check_piece(const FilePiece& piece, std::string_view bytes, const std::string& who);

}  // namespace troupe
