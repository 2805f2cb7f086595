#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "batch_pipe.hpp"

namespace troupe {

/// A batch as bytes, for memory that another process reads: meta, names, types and shapes, then each tensor's elements at
/// a multiple of 64 bytes. Tensors must be dense and in host memory; Failure{Unsupported} names one that is not.
class PackedBatch {
 public:
  explicit PackedBatch(const LoadedBatch& loaded);
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  /// @param to size() bytes.
  void write(std::span<std::byte> to) const;

 private:
  struct Part {
    at::Tensor tensor;
    std::size_t offset;
  };
  std::string header_;
  std::vector<Part> parts_;
  std::size_t size_ = 0;
};

/// The inverse. Tensors share `bytes`, which `owner` keeps. Throws Failure{ProtocolError} on anything else than
/// PackedBatch wrote.
[[nodiscard]] LoadedBatch unpack(const std::shared_ptr<void>& owner, std::span<std::byte> bytes);

}  // namespace troupe
