#include "state_pieces.hpp"

#include <troupe/errors.hpp>
#include <troupe/tensor_files.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

namespace troupe::detail {

namespace {

constexpr std::uint64_t page = 4096;

std::uint64_t element_bytes(at::ScalarType type) { return c10::elementSize(type); }

/// Where the share of holder `h` of `n` begins in `total` bytes that they all hold.
std::uint64_t cut(std::uint64_t total, int h, int n) {
  if (h >= n) return total;
  return total / page * static_cast<std::uint64_t>(h) / static_cast<std::uint64_t>(n) * page;
}

/// As they lie in the file.
std::vector<std::size_t> file_order(const std::vector<TensorSpec>& specs) {
  std::vector<std::size_t> order(specs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return specs[a].dtype != specs[b].dtype ? specs[a].dtype > specs[b].dtype : specs[a].name < specs[b].name;
  });
  return order;
}

/// Adds bytes [begin, end) of what this rank holds of `piece`.
void add_ranges(SharedTensorFile& file, std::size_t tensor, const StatePiece& piece, std::uint64_t begin, std::uint64_t end,
                std::vector<at::Tensor>& keep) {
  if (begin >= end) return;
  const auto offset = static_cast<std::uint64_t>(piece.first) * element_bytes(piece.dtype);
  if (piece.local.defined()) {
    auto values = piece.local;
    if (!values.is_cpu()) values = keep.emplace_back(values.cpu());
    if (!values.is_contiguous()) values = keep.emplace_back(values.contiguous());
    if (values.scalar_type() != piece.dtype) {
      const auto size = element_bytes(piece.dtype);
      values = keep.emplace_back(values.view({-1}).narrow(0, static_cast<std::int64_t>(begin / size), static_cast<std::int64_t>((end - begin) / size)).to(piece.dtype));
      file.mine.push_back({tensor, offset + begin, {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()}, piece.finite});
      return;
    }
    const auto* bytes = static_cast<const std::byte*>(values.const_data_ptr());
    file.mine.push_back({tensor, offset + begin, {bytes + begin, static_cast<std::size_t>(end - begin)}, piece.finite});
    return;
  }
  std::uint64_t at = 0;
  for (const auto& run : piece.mapped) {
    const auto from = std::max(begin, at), to = std::min(end, at + run.size());
    if (from < to) file.mine.push_back({tensor, offset + from, run.subspan(from - at, to - from), piece.finite});
    at += run.size();
  }
}

std::string shape_text(const auto& sizes) {
  std::ostringstream text;
  text << "[";
  for (std::size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

std::span<std::byte> bytes_of(const at::Tensor& tensor) { return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()}; }

}  // namespace

SharedTensorFile shared_file(std::string stem, const std::vector<StatePiece>& pieces, std::uint64_t max_shard_bytes, std::vector<at::Tensor>& keep) {
  SharedTensorFile file{.stem = std::move(stem), .tensors = {}, .metadata = {{"format", "pt"}}, .mine = {}, .max_shard_bytes = max_shard_bytes};
  std::map<int, std::uint64_t> totals, seen;  // bytes by number of holders
  for (const auto& piece : pieces) {
    auto& spec = file.tensors.emplace_back(TensorSpec{piece.name, safetensors_dtype_of(piece.dtype), {}});
    for (const auto size : piece.sizes) spec.shape.push_back(static_cast<std::uint64_t>(size));
    if (piece.num_holders > 1) totals[piece.num_holders] += static_cast<std::uint64_t>(piece.count) * element_bytes(piece.dtype);
  }
  for (const auto i : file_order(file.tensors)) {
    const auto& piece = pieces[i];
    const auto bytes = static_cast<std::uint64_t>(piece.count) * element_bytes(piece.dtype);
    if (piece.holder < 0) continue;
    if (piece.num_holders == 1) {
      add_ranges(file, i, piece, 0, bytes, keep);
      continue;
    }
    auto& at = seen[piece.num_holders];
    const auto total = totals[piece.num_holders];
    const auto from = std::clamp(cut(total, piece.holder, piece.num_holders), at, at + bytes);
    const auto to = std::clamp(cut(total, piece.holder + 1, piece.num_holders), at, at + bytes);
    add_ranges(file, i, piece, from - at, to - at, keep);
    at += bytes;
  }
  return file;
}

StoredTensors::StoredTensors(const CheckpointReader& reader, std::string stem) : reader_(reader), stem_(std::move(stem)), specs_(reader.tensors(stem_)) {
  by_name_.resize(specs_.size());
  std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
  std::ranges::sort(by_name_, {}, [this](std::size_t i) { return std::string_view{specs_[i].name}; });
}

const TensorSpec* StoredTensors::find(std::string_view name) const noexcept {
  const auto found = std::ranges::lower_bound(by_name_, name, {}, [this](std::size_t i) { return std::string_view{specs_[i].name}; });
  return found == by_name_.end() || specs_[*found].name != name ? nullptr : &specs_[*found];
}

const TensorSpec* StoredTensors::find(const StatePiece& piece) const noexcept {
  if (const auto* spec = find(piece.name)) return spec;
  for (const auto& alias : piece.aliases) {
    if (const auto* spec = find(alias)) return spec;
  }
  return nullptr;
}

std::string StoredTensors::where(const TensorSpec& spec) const {
  const auto& manifest = reader_.manifest();
  const auto* stored = manifest.find_tensor(stem_, spec.name);
  const auto file = stored && stored->file < manifest.files.size() ? manifest.files[stored->file].name : stem_;
  return (reader_.directory() / file).string() + ": tensor " + spec.name;
}

void StoredTensors::check_shape(const TensorSpec& spec, const StatePiece& piece) const {
  if (std::ranges::equal(spec.shape, piece.sizes, [](auto a, auto b) { return std::cmp_equal(a, b); })) return;
  throw Failure{Errc::InvalidArgument, where(spec) + " is " + shape_text(spec.shape) + ", in the model " + shape_text(piece.sizes)};
}

void StoredTensors::read(std::span<const Wanted> wanted) const {
  const at::NoGradGuard no_grad;
  std::vector<ReadRange> direct;
  std::vector<Wanted> indirect;
  for (const auto& [spec, piece] : wanted) {
    if (piece->count == 0) continue;
    const bool same = !piece->put && piece->local.is_cpu() && piece->local.is_contiguous() && safetensors_dtype_of(piece->local.scalar_type()) == spec->dtype;
    if (!same) {
      indirect.push_back({spec, piece});
      continue;
    }
    direct.push_back({spec->name, static_cast<std::uint64_t>(piece->first) * element_bytes(piece->local.scalar_type()), bytes_of(piece->local)});
  }
  if (!direct.empty()) reader_.read(stem_, direct);
  for (const auto& [spec, piece] : indirect) {
    const auto type = torch_dtype_of(spec->dtype);
    auto values = at::empty({piece->count}, at::TensorOptions().dtype(type));
    const ReadRange range{spec->name, static_cast<std::uint64_t>(piece->first) * element_bytes(type), bytes_of(values)};
    reader_.read(stem_, {&range, 1});
    if (piece->local.defined()) values = values.view(piece->local.sizes());
    if (piece->put) piece->put(values);
    else at::Tensor{piece->local}.copy_(values);
  }
}

std::vector<std::int64_t> StoredTensors::read_counts(std::span<const TensorSpec* const> specs) const {
  std::vector<at::Tensor> values;
  std::vector<ReadRange> ranges;
  for (const auto* spec : specs) {
    const bool one = std::ranges::all_of(spec->shape, [](auto size) { return size == 1; });
    if (!one) throw Failure{Errc::FileCorrupt, where(*spec) + " is " + shape_text(spec->shape) + ", but it must be one number"};
    values.push_back(at::empty({1}, at::TensorOptions().dtype(torch_dtype_of(spec->dtype))));
    ranges.push_back({spec->name, 0, bytes_of(values.back())});
  }
  if (!ranges.empty()) reader_.read(stem_, ranges);
  std::vector<std::int64_t> counts;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto number = values[i].to(at::kDouble).item<double>();
    if (!(number >= 0) || number > 9e15) throw Failure{Errc::FileCorrupt, where(*specs[i]) + " is no count of updates"};
    counts.push_back(static_cast<std::int64_t>(number));
  }
  return counts;
}

}  // namespace troupe::detail
