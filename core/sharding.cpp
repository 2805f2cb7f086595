#include <algorithm>
#include <limits>
#include <troupe/data/sharding.hpp>
#include <troupe/errors.hpp>

namespace troupe {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

/// Samples that one rank takes in a full batch.
std::int64_t rank_batch_size(const BatchSharding& s) {
  return s.split_batches ? s.batch_size / s.world_size : s.batch_size;
}

/// Position of the first sample of this rank's batch `index`: rounds of one global batch, in it
/// ranks in order.
std::int64_t first_position(const BatchSharding& s, std::int64_t index) {
  return s.first + index * total_batch_size(s) + s.rank * rank_batch_size(s);
}

}  // namespace

void validate(const BatchSharding& s) {
  const auto fail = [](const std::string& text) {
    throw Failure{Errc::InvalidArgument, "DataLoader: " + text};
  };
  if (s.batch_size < 1)
    fail("batch_size = " + std::to_string(s.batch_size) + "; it must be at least 1");
  if (s.world_size < 1)
    fail("world_size = " + std::to_string(s.world_size) + "; it must be at least 1");
  if (s.rank < 0 || s.rank >= s.world_size) {
    fail("rank = " + std::to_string(s.rank) + "; it must be from 0 to " +
         std::to_string(s.world_size - 1));
  }
  if (s.batch_size > std::numeric_limits<std::int64_t>::max() / 2 / s.world_size) {
    fail("batch_size = " + std::to_string(s.batch_size) + " times " + std::to_string(s.world_size) +
         " ranks overflows");
  }
  if (s.first < 0 || s.first > s.num_samples) {
    fail("an epoch of " + std::to_string(s.num_samples) + " samples cannot go on after " +
         std::to_string(s.first));
  }
  if (s.split_batches && s.batch_size % s.world_size != 0) {
    fail("with split_batches, batch_size = " + std::to_string(s.batch_size) +
         " must be a multiple of the world size, " + std::to_string(s.world_size));
  }
}

std::int64_t total_batch_size(const BatchSharding& s) noexcept {
  return s.split_batches ? s.batch_size : s.batch_size * s.world_size;
}

std::int64_t remainder(const BatchSharding& s) noexcept {
  return s.drop_last ? -1 : (s.num_samples - s.first) % total_batch_size(s);
}

std::int64_t num_batches(const BatchSharding& s) noexcept {
  const auto total = total_batch_size(s);
  const auto left = s.num_samples - s.first;
  const auto full = left / total;
  if (s.drop_last) return full;
  if (s.even_batches) return ceil_div(left, total);
  return full + (first_position(s, full) < s.num_samples);
}

std::int64_t samples_taken(const BatchSharding& s, std::int64_t num_batches) noexcept {
  const auto left = s.num_samples - s.first;
  const auto total = total_batch_size(s);
  return s.first + (num_batches > left / total ? left : num_batches * total);
}

PositionRange batch_at(const BatchSharding& s, std::int64_t index) noexcept {
  const auto first = first_position(s, index);
  const auto count = rank_batch_size(s);
  const bool fill_up = s.even_batches && s.world_size > 1;
  return {first, fill_up ? count : std::min(count, s.num_samples - first)};
}

}  // namespace troupe
