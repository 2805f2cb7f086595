#include "dispatch.hpp"

#include <ATen/core/Tensor.h>

#include <troupe/errors.hpp>
#include <utility>

#include "batch_bytes.hpp"

namespace troupe {
namespace {

// What a message's first byte says of the rest; a batch begins at byte 64, so that its tensors stay aligned.
constexpr char kBatch = 'B', kEnd = 'E', kError = 'X';
constexpr std::size_t kBatchAt = 64;

std::string error_message(const std::exception_ptr& error) {
  std::uint16_t code = static_cast<std::uint16_t>(Errc::DataMalformed);
  std::string text;
  try {
    std::rethrow_exception(error);
  } catch (const Failure& failure) {
    code = static_cast<std::uint16_t>(failure.code());
    text = failure.what();
  } catch (const std::exception& other) {
    text = other.what();
  } catch (...) {
    text = "something that is no std::exception was thrown";
  }
  return std::string{kError} + static_cast<char>(code & 0xff) + static_cast<char>(code >> 8) + text;
}

}  // namespace

DispatchPipe::DispatchPipe(std::unique_ptr<BatchPipe> inner, DataLoader::BroadcastBytes broadcast, int rank, int world_size)
    : inner_(std::move(inner)), broadcast_(std::move(broadcast)), rank_(rank), world_size_(world_size) {}

std::string DispatchPipe::read() {
  try {
    const auto loaded = inner_->next();
    if (!loaded) return {kEnd};
    const PackedBatch packed{*loaded};
    std::string bytes(kBatchAt + packed.size(), '\0');
    bytes.front() = kBatch;
    packed.write(std::as_writable_bytes(std::span{bytes}).subspan(kBatchAt));
    return bytes;
  } catch (...) {
    return error_message(std::current_exception());
  }
}

std::optional<LoadedBatch> DispatchPipe::next() {
  const auto bytes = std::make_shared<std::string>(inner_ ? read() : std::string{});
  broadcast_(*bytes);
  const auto kind = bytes->empty() ? kError : bytes->front();
  if (kind == kBatch) {
    if (bytes->size() < kBatchAt) throw Failure{Errc::ProtocolError, "DataLoader: rank 0 dispatched a batch of too few bytes"};
    return share_of(unpack(bytes, std::as_writable_bytes(std::span{*bytes}).subspan(kBatchAt)));
  }
  if (kind == kEnd) return std::nullopt;
  if (bytes->size() < 3) throw Failure{Errc::ProtocolError, "DataLoader: rank 0 dispatched nothing that is a message"};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>((*bytes)[i]); };
  throw Failure{static_cast<Errc>(byte(1) | byte(2) << 8), (rank_ == 0 ? "" : "rank 0: ") + bytes->substr(3)};
}

LoadedBatch DispatchPipe::share_of(const LoadedBatch& all) const {
  const auto rows = all.batch.batch_size();
  LoadedBatch mine{all.meta, {}};
  const auto share = rows / world_size_;
  for (const auto& [name, tensor] : all.batch) {
    if (tensor.dim() == 0 || tensor.size(0) != rows || rows % world_size_ != 0) {
      std::string shape;
      for (const auto size : tensor.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
      throw Failure{Errc::InvalidArgument, "DataLoader: with dispatch_batches, '" + name + "' of shape [" + shape + "] cannot be cut along dim 0 into " +
                                               std::to_string(world_size_) + " equal parts of " + std::to_string(rows) + " rows"};
    }
    mine.batch.set(name, tensor.narrow(0, rank_ * share, share).clone());
  }
  auto& indices = mine.meta.indices;
  if (std::ssize(indices) == rows) indices = {indices.begin() + rank_ * share, indices.begin() + (rank_ + 1) * share};
  return mine;
}

}  // namespace troupe
