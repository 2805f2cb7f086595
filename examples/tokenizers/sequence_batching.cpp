#include <algorithm>
#include <numeric>
#include <random>
#include <troupe/errors.hpp>
#include <troupe/sequence_batching.hpp>

namespace troupe {
namespace {

[[noreturn]] void refuse(const std::string& text) { throw Failure{Errc::InvalidArgument, text}; }

void check_labels(std::span<const std::int64_t> ids, std::span<const std::int64_t> labels) {
  if (!labels.empty() && labels.size() != ids.size())
    refuse("a sequence has " + std::to_string(ids.size()) + " ids but " +
           std::to_string(labels.size()) + " labels");
}

}  // namespace

std::vector<std::int64_t> mask_prompt(std::span<const std::int64_t> ids,
                                      std::size_t prompt_length) {
  std::vector<std::int64_t> out(ids.begin(), ids.end());
  std::fill_n(out.begin(), std::min(prompt_length, out.size()), kIgnoredLabel);
  return out;
}

SequencePacker::SequencePacker(const PackOptions& options) : options_(options) {
  if (options.context_length == 0) refuse("context_length should be at least 1");
  if (options.separator && options.context_length < 2)
    refuse("context_length 1 has no room for a separator");
  if (options.open_sequences == 0) refuse("open_sequences should be at least 1");
}

void SequencePacker::add(std::span<const std::int64_t> ids, std::span<const std::int64_t> labels) {
  check_labels(ids, labels);
  if (ids.empty()) return;
  const bool separate = options_.separator && ids.back() != *options_.separator;
  std::vector<std::int64_t> with_end(ids.begin(), ids.end());
  std::vector<std::int64_t> targets(labels.empty() ? ids.begin() : labels.begin(),
                                    labels.empty() ? ids.end() : labels.end());
  if (options_.mode == PackMode::Whole) {
    const auto room = options_.context_length - (separate ? 1 : 0);
    with_end.resize(std::min(with_end.size(), room));
    targets.resize(with_end.size());
  }
  if (separate) {
    with_end.push_back(*options_.separator);
    targets.push_back(*options_.separator);
  }
  options_.mode == PackMode::Whole ? add_whole(with_end, targets) : add_split(with_end, targets);
}

namespace {

void append_document(std::vector<std::int64_t>& ids, std::vector<std::int64_t>& labels,
                     std::vector<std::int64_t>& boundaries, std::span<const std::int64_t> more,
                     std::span<const std::int64_t> targets) {
  const auto begin = ids.size();
  ids.insert(ids.end(), more.begin(), more.end());
  labels.insert(labels.end(), targets.begin(), targets.end());
  if (begin > 0) labels[begin] = kIgnoredLabel;
  boundaries.push_back(static_cast<std::int64_t>(ids.size()));
}

}  // namespace

void SequencePacker::add_split(std::span<const std::int64_t> ids,
                               std::span<const std::int64_t> labels) {
  for (std::size_t done = 0; done < ids.size();) {
    if (open_.empty()) open_.emplace_back();
    auto& open = open_.back();
    const auto count = std::min(ids.size() - done, options_.context_length - open.ids.size());
    append_document(open.ids, open.labels, open.boundaries, ids.subspan(done, count),
                    labels.subspan(done, count));
    done += count;
    if (open.ids.size() < options_.context_length) continue;
    close(open);
    open_.pop_back();
  }
}

void SequencePacker::add_whole(std::span<const std::int64_t> ids,
                               std::span<const std::int64_t> labels) {
  const auto fits = [&](const Open& open) {
    return open.ids.size() + ids.size() <= options_.context_length;
  };
  auto place = std::ranges::find_if(open_, fits);
  if (place == open_.end()) {
    if (open_.size() >= options_.open_sequences) {
      const auto fullest =
          std::ranges::max_element(open_, {}, [](const Open& open) { return open.ids.size(); });
      close(*fullest);
      open_.erase(fullest);
    }
    open_.emplace_back();
    place = std::prev(open_.end());
  }
  append_document(place->ids, place->labels, place->boundaries, ids, labels);
  if (place->ids.size() < options_.context_length) return;
  close(*place);
  open_.erase(place);
}

void SequencePacker::close(Open& open) {
  PackedSequence out;
  out.ids = std::move(open.ids);
  out.labels = std::move(open.labels);
  out.boundaries = std::move(open.boundaries);
  out.position_ids.resize(out.ids.size());
  out.segment_ids.resize(out.ids.size());
  for (std::size_t document = 0; document + 1 < out.boundaries.size(); ++document) {
    const auto begin = out.boundaries[document], end = out.boundaries[document + 1];
    std::iota(out.position_ids.begin() + begin, out.position_ids.begin() + end, std::int64_t{0});
    std::fill(out.segment_ids.begin() + begin, out.segment_ids.begin() + end,
              static_cast<std::int32_t>(document) + 1);
  }
  out.ids.resize(options_.context_length, options_.pad_id);
  out.labels.resize(options_.context_length, kIgnoredLabel);
  out.position_ids.resize(options_.context_length, 0);
  out.segment_ids.resize(options_.context_length, 0);
  full_.push_back(std::move(out));
}

void SequencePacker::finish() {
  for (auto& open : open_) {
    const bool drop = options_.mode == PackMode::Split && options_.drop_last;
    if (!drop && !open.ids.empty()) close(open);
  }
  open_.clear();
}

std::optional<PackedSequence> SequencePacker::next() {
  if (full_.empty()) return std::nullopt;
  auto out = std::move(full_.front());
  full_.pop_front();
  return out;
}

PaddedBatch pad_rows(std::span<const std::vector<std::int64_t>> rows, const PadOptions& options,
                     std::span<const std::vector<std::int64_t>> labels,
                     std::span<const std::vector<std::int64_t>> type_ids) {
  if (options.multiple_of == 0) refuse("multiple_of should be at least 1");
  PaddedBatch out;
  out.rows = rows.size();
  for (const auto& row : rows) out.length = std::max(out.length, row.size());
  if (options.length != 0 && out.length > options.length)
    refuse("a row of " + std::to_string(out.length) + " ids does not fit into the length " +
           std::to_string(options.length));
  out.length = options.length != 0 ? options.length
                                   : (out.length + options.multiple_of - 1) / options.multiple_of *
                                         options.multiple_of;
  const auto fill = [&](std::vector<std::int64_t>& to,
                        std::span<const std::vector<std::int64_t>> from, std::int64_t padding,
                        const char* what) {
    if (from.size() != rows.size())
      refuse(std::string("there are ") + std::to_string(from.size()) + " rows of " + what +
             " for " + std::to_string(rows.size()) + " of ids");
    to.assign(out.rows * out.length, padding);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      if (from[row].size() != rows[row].size())
        refuse("row " + std::to_string(row) + " has another number of " + what + " than of ids");
      const auto skip = options.side == PadSide::Left ? out.length - rows[row].size() : 0;
      std::ranges::copy(from[row],
                        to.begin() + static_cast<std::ptrdiff_t>(row * out.length + skip));
    }
  };
  fill(out.ids, rows, options.pad_id, "ids");
  out.attention_mask.assign(out.rows * out.length, 0);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto skip = options.side == PadSide::Left ? out.length - rows[row].size() : 0;
    std::fill_n(out.attention_mask.begin() + static_cast<std::ptrdiff_t>(row * out.length + skip),
                rows[row].size(), 1);
  }
  if (!labels.empty()) fill(out.labels, labels, kIgnoredLabel, "labels");
  if (!type_ids.empty()) fill(out.type_ids, type_ids, 0, "type ids");
  return out;
}

std::vector<std::vector<std::size_t>> bucket_by_length(std::span<const std::size_t> lengths,
                                                       std::span<const std::size_t> order,
                                                       const BucketOptions& options) {
  if (options.batch_size == 0 || options.window == 0)
    refuse("batch_size and window should be at least 1");
  for (const auto index : order) {
    if (index >= lengths.size())
      refuse("the order names row " + std::to_string(index) + " of " +
             std::to_string(lengths.size()));
  }
  std::mt19937_64 draw{options.seed};
  std::vector<std::vector<std::size_t>> out;
  const auto window_rows = options.batch_size * options.window;
  for (std::size_t begin = 0; begin < order.size(); begin += window_rows) {
    const auto part = order.subspan(begin, std::min(window_rows, order.size() - begin));
    std::vector<std::size_t> rows(part.begin(), part.end());
    std::ranges::stable_sort(rows, {}, [&](std::size_t row) { return lengths[row]; });
    const auto first = out.size();
    for (std::size_t at = 0; at < rows.size(); at += options.batch_size) {
      const auto end = std::min(at + options.batch_size, rows.size());
      out.emplace_back(rows.begin() + static_cast<std::ptrdiff_t>(at),
                       rows.begin() + static_cast<std::ptrdiff_t>(end));
    }
    const bool is_short = out.back().size() < options.batch_size;
    for (auto i = out.size() - first - (is_short ? 1 : 0); i > 1; --i)
      std::swap(out[first + i - 1], out[first + draw() % i]);
    if (is_short && options.drop_last) out.pop_back();
  }
  return out;
}

}  // namespace troupe
