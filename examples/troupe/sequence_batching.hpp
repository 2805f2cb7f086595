#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace troupe {

/// The label that a loss leaves out, as PyTorch's `ignore_index`.
inline constexpr std::int64_t kIgnoredLabel = -100;

/// Labels of one sequence: its ids, the first `prompt_length` of them -100.
[[nodiscard]] std::vector<std::int64_t> mask_prompt(std::span<const std::int64_t> ids,
                                                    std::size_t prompt_length);

enum class PackMode : std::uint8_t {
  Split,  ///< documents end to end, cut wherever a sequence is full: no padding, no id lost
  Whole,  ///< a document stays in one sequence (first fit); one longer than the context is cut
};

struct PackOptions {
  std::size_t context_length = 0;
  PackMode mode = PackMode::Split;
  std::optional<std::int64_t> separator =
      {};                   ///< appended to each document that does not end with it, such as eos
  std::int64_t pad_id = 0;  ///< Whole, and the last sequence
  bool drop_last = false;   ///< Split: drop a last sequence that is not full
  std::size_t open_sequences =
      64;  ///< Whole: sequences that still take documents; more fills them better
};

/// One row of a packed batch, all vectors `context_length` long but the last.
struct PackedSequence {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> labels;  ///< -100 for padding, masked prompts and the first id of each
                                     ///< document after the first, which nothing before it predicts
  std::vector<std::int64_t> position_ids;  ///< from 0 in each document
  std::vector<std::int32_t>
      segment_ids;  ///< 1, 2 … by document, 0 for padding: attention stays within equal ones
  std::vector<std::int64_t>
      boundaries;  ///< where documents begin, and the end: cumulative lengths, without padding
};

/// Packs sequences as they come, in order.
///
/// Threads: one caller. Memory: `open_sequences` + the full ones not taken yet.
class SequencePacker {
 public:
  /// Throws Failure{InvalidArgument} for a context length of 0, or one too short for the separator.
  explicit SequencePacker(const PackOptions& options);

  /// @param labels as long as `ids`, or empty: the ids themselves.
  void add(std::span<const std::int64_t> ids, std::span<const std::int64_t> labels = {});
  /// No more will come: what is open becomes sequences, padded.
  void finish();
  /// The next full sequence, in the order they were filled.
  [[nodiscard]] std::optional<PackedSequence> next();

 private:
  struct Open {
    std::vector<std::int64_t> ids, labels;
    std::vector<std::int64_t> boundaries = {0};
  };
  void add_split(std::span<const std::int64_t> ids, std::span<const std::int64_t> labels);
  void add_whole(std::span<const std::int64_t> ids, std::span<const std::int64_t> labels);
  void close(Open& open);

  PackOptions options_;
  std::deque<Open> open_;
  std::deque<PackedSequence> full_;
};

/// Rows of one length, row by row.
struct PaddedBatch {
  std::size_t rows = 0, length = 0;
  std::vector<std::int64_t> ids, attention_mask;  ///< [rows × length]
  std::vector<std::int64_t> type_ids, labels;     ///< empty, or [rows × length]
};

enum class PadSide : std::uint8_t { Right, Left };

struct PadOptions {
  std::int64_t pad_id = 0;
  std::size_t multiple_of = 1;    ///< length is rounded up to it
  std::size_t length = 0;         ///< 0: the longest row's
  PadSide side = PadSide::Right;  ///< Left for generation
};

/// Pads rows; labels, where given, with -100. Throws Failure{InvalidArgument} when a row is longer
/// than `length`, or labels differ from ids in number or length.
[[nodiscard]] PaddedBatch pad_rows(std::span<const std::vector<std::int64_t>> rows,
                                   const PadOptions& options = {},
                                   std::span<const std::vector<std::int64_t>> labels = {},
                                   std::span<const std::vector<std::int64_t>> type_ids = {});

/// Batches of rows of like length: rows are sorted by length within windows of `window` batches, in
/// the order given (a sampler's), and cut into batches; the batches' order is shuffled by `seed`
/// within each window.
/// @return indices into `order`'s values; every one once, only the last batch short (dropped with
/// `drop_last`).
struct BucketOptions {
  std::size_t batch_size = 1;
  std::size_t window = 50;
  bool drop_last = false;
  std::uint64_t seed = 0;
};
[[nodiscard]] std::vector<std::vector<std::size_t>> bucket_by_length(
    std::span<const std::size_t> lengths, std::span<const std::size_t> order,
    const BucketOptions& options);

}  // namespace troupe
