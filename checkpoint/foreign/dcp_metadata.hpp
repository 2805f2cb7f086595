#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <troupe/foreign_pickle.hpp>
#include <vector>

namespace troupe::detail {

/// One item of a `__R_K.distcp` file: a file of torch.save of its own.
struct DcpItem {
  std::string file;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

/// A box of a tensor.
struct DcpChunk {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> sizes;
  DcpItem item;
};

struct DcpTensor {
  TorchDtype dtype = TorchDtype::float32;
  std::vector<std::int64_t> shape;
  std::vector<DcpChunk> chunks;  ///< together they cover the shape without overlap
};

/// What `.metadata` of torch.distributed.checkpoint says.
struct DcpMetadata {
  std::map<std::string, DcpTensor> tensors;
  std::map<std::string, DcpItem> objects;  ///< anything that is no tensor
};

/// Interprets the bytes of `.metadata`: a pickle of a fixed set of classes, taken as data. Checked:
/// chunks tile their tensors, files are plain names, no two items overlap. Throws
/// Failure{FileCorrupt, Unsupported} beginning with `what`.
[[nodiscard]] DcpMetadata parse_dcp_metadata(std::span<const std::byte> bytes,
                                             const std::string& what);

}  // namespace troupe::detail
