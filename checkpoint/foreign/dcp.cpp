#include <cstring>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <utility>

#include "dcp_metadata.hpp"
#include "flatten.hpp"
#include "mapped_file.hpp"
#include "tensor_shape.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using detail::DcpChunk;
using detail::DcpItem;
using detail::DcpTensor;

class DcpReader {
 public:
  explicit DcpReader(const fs::path& directory) : directory_(directory) {}

  ForeignContents read() {
    const auto file = directory_ / ".metadata";
    const auto mapped = detail::map_private(file);
    const auto metadata = detail::parse_dcp_metadata(mapped.bytes, file.string());
    ForeignContents out;
    for (const auto& [name, tensor] : metadata.tensors)
      out.tensors.emplace(name, assemble(name, tensor));
    for (const auto& [name, item] : metadata.objects)
      detail::flatten(open(name, item).root, name, out);
    return out;
  }

 private:
  [[nodiscard]] PickleFile open(const std::string& name, const DcpItem& item) {
    const auto path = directory_ / item.file;
    auto found = files_.find(item.file);
    if (found == files_.end()) found = files_.emplace(item.file, detail::map_private(path)).first;
    const auto& mapped = found->second;
    const auto what = path.string() + ": '" + name + "'";
    if (item.offset > mapped.bytes.size() || item.length > mapped.bytes.size() - item.offset) {
      throw Failure{Errc::FileCorrupt, what + ": should lie at bytes " +
                                           std::to_string(item.offset) + " to " +
                                           std::to_string(item.offset + item.length) +
                                           ", the file has " + std::to_string(mapped.bytes.size())};
    }
    return read_torch_bytes(mapped.bytes.subspan(item.offset, item.length), mapped.keep,
                            what + " at byte " + std::to_string(item.offset));
  }

  [[nodiscard]] ForeignTensor chunk_of(const std::string& name, const DcpTensor& tensor,
                                       const DcpChunk& chunk) {
    auto out = open(name, chunk.item).root.tensor();
    if (out.dtype != tensor.dtype || out.shape != chunk.sizes) {
      throw Failure{Errc::FileCorrupt,
                    (directory_ / chunk.item.file).string() + ": '" + name +
                        "' has a chunk of another dtype or shape than .metadata says"};
    }
    return out;
  }

  [[nodiscard]] ForeignTensor assemble(const std::string& name, const DcpTensor& tensor) {
    if (tensor.chunks.size() == 1) return chunk_of(name, tensor, tensor.chunks.front());
    std::vector<ForeignTensor>
        parts;  // all are opened before memory is taken: the files then have as many bytes
    for (const auto& chunk : tensor.chunks) parts.push_back(chunk_of(name, tensor, chunk));
    ForeignTensor out;
    out.dtype = tensor.dtype;
    out.shape = tensor.shape;
    out.strides = detail::row_major(tensor.shape);
    const auto memory =
        std::make_shared<std::vector<std::byte>>(out.elements() * bytes_of(out.dtype));
    for (std::size_t i = 0; i < parts.size(); ++i)
      copy_box(parts[i], tensor.chunks[i], out, *memory);
    out.storage = *memory;
    out.keep = memory;
    return out;
  }

  /// Row by row of the last dimension.
  static void copy_box(const ForeignTensor& part, const DcpChunk& chunk, const ForeignTensor& whole,
                       std::vector<std::byte>& memory) {
    const auto bytes = contiguous_bytes(part);
    const auto item = bytes_of(part.dtype);
    const auto rank = chunk.sizes.size();
    const auto row = rank == 0 ? 1 : static_cast<std::uint64_t>(chunk.sizes[rank - 1]);
    std::vector<std::int64_t> index(rank, 0);
    for (std::uint64_t from = 0; from < bytes.size(); from += row * item) {
      std::uint64_t to = 0;
      for (std::size_t d = 0; d < rank; ++d)
        to += static_cast<std::uint64_t>((chunk.offsets[d] + index[d]) * whole.strides[d]);
      std::memcpy(memory.data() + to * item, bytes.data() + from, row * item);
      for (auto d = rank > 0 ? rank - 1 : 0; d-- > 0;) {
        if (++index[d] < chunk.sizes[d]) break;
        index[d] = 0;
      }
    }
  }

  fs::path directory_;
  std::map<std::string, detail::MappedFile> files_;
};

}  // namespace

ForeignContents read_dcp(const fs::path& directory) { return DcpReader{directory}.read(); }

}  // namespace troupe
