#include "ddp.hpp"
#include "c10d/tensor_buffer.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <map>

namespace troupe::detail {

namespace {

constexpr std::size_t first_bucket_bytes = std::size_t{1} << 20;
constexpr std::size_t broadcast_bytes = std::size_t{25} << 20;

}  // namespace

std::vector<BucketPlan> plan_buckets(const NamedTensors& params, std::size_t cap_bytes, std::size_t in_place_bytes) {
  struct Open {
    BucketPlan plan;
    std::size_t bytes = 0;
  };
  std::vector<BucketPlan> plans;
  std::map<at::ScalarType, Open> open;
  auto cap = std::min(cap_bytes, first_bucket_bytes);
  for (std::size_t i = params.size(); i-- > 0;) {
    const auto& tensor = params[i].second;
    const auto bytes = static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
    if (in_place_bytes && bytes >= in_place_bytes && tensor.is_contiguous()) {
      plans.push_back({.params = {i}, .in_place = true});
      continue;
    }
    auto& bucket = open[tensor.scalar_type()];
    bucket.plan.params.push_back(i);
    bucket.bytes += bytes;
    if (bucket.bytes < cap) continue;
    plans.push_back(std::move(bucket.plan));
    bucket = {};
    cap = cap_bytes;
  }
  for (auto& [type, bucket] : open) {
    if (!bucket.plan.params.empty()) plans.push_back(std::move(bucket.plan));
  }
  // A bucket is ready with its last parameter, the one of the lowest index.
  std::stable_sort(plans.begin(), plans.end(), [](const auto& a, const auto& b) { return a.params.back() > b.params.back(); });
  return plans;
}

std::vector<std::string> all_gather_bytes(Communicator& communicator, const std::string& bytes) {
  const auto size = static_cast<std::size_t>(communicator.size());
  std::int64_t length = static_cast<std::int64_t>(bytes.size());
  std::vector<std::int64_t> lengths(size);
  communicator.all_gather({&length, 8, DType::I64}, {lengths.data(), 8 * size, DType::I64}).wait().or_throw();
  const auto longest = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
  std::vector<std::string> all(size);
  if (longest == 0) return all;
  std::string padded = bytes;
  padded.resize(longest);
  std::string gathered(longest * size, '\0');
  communicator.all_gather({padded.data(), longest, DType::U8}, {gathered.data(), gathered.size(), DType::U8}).wait().or_throw();
  for (std::size_t r = 0; r < size; ++r) all[r] = gathered.substr(r * longest, static_cast<std::size_t>(lengths[r]));
  return all;
}

void broadcast_tensors(Communicator& communicator, const std::vector<at::Tensor>& tensors, int root) {
  std::size_t total = 0;
  for (const auto& tensor : tensors) total += static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
  if (total == 0) return;
  const auto window = std::min(total, broadcast_bytes);
  const auto memory = communicator.allocate(window);
  auto* staging = static_cast<char*>(memory.get());
  std::vector<at::Tensor> dense;  // contiguous images in host memory: what is not its own is copied back at the end
  for (const auto& tensor : tensors) dense.push_back(tensor.contiguous().to(at::kCPU));

  // One stream of bytes over all tensors, cut into windows; `visit` calls copy(tensor memory, window memory, bytes).
  const auto visit = [&](std::size_t begin, std::size_t end, auto&& copy) {
    std::size_t at = 0;
    for (const auto& tensor : dense) {
      const auto bytes = static_cast<std::size_t>(tensor.numel()) * tensor.element_size();
      const auto from = std::max(begin, at);
      const auto to = std::min(end, at + bytes);
      if (from < to) copy(static_cast<char*>(tensor.data_ptr()) + (from - at), staging + (from - begin), to - from);
      at += bytes;
    }
  };
  for (std::size_t begin = 0; begin < total; begin += window) {
    const auto end = std::min(total, begin + window);
    if (communicator.rank() == root) visit(begin, end, [](char* tensor, char* buffer, std::size_t n) { std::memcpy(buffer, tensor, n); });
    communicator.broadcast({staging, end - begin, DType::U8}, root).wait().or_throw();
    if (communicator.rank() != root) visit(begin, end, [](char* tensor, char* buffer, std::size_t n) { std::memcpy(tensor, buffer, n); });
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!dense[i].is_same(tensors[i])) at::Tensor{tensors[i]}.copy_(dense[i]);
  }
}

}  // namespace troupe::detail
