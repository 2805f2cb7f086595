#include "dcp_metadata.hpp"

#include <algorithm>
#include <troupe/errors.hpp>
#include <tuple>
#include <utility>

#include "flatten.hpp"
#include "tensor_shape.hpp"

namespace troupe::detail {
namespace {

constexpr std::string_view kMetadata = "torch.distributed.checkpoint.metadata.";
constexpr std::size_t kMaxChunks = 4096;  // of one tensor; they are compared pair by pair

PickleOptions options() {
  PickleOptions out;
  for (const auto* const name :
       {"Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "MetadataIndex", "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta"})
    out.data_classes.push_back(std::string(kMetadata) + name);
  for (const auto* const name :
       {"torch.distributed.checkpoint.filesystem._StorageInfo", "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING"})
    out.data_classes.emplace_back(name);
  return out;
}

bool is_class(const PickleValue& value, std::string_view name) {
  return value.is(PickleKind::Object) &&
         value.class_name() == std::string(kMetadata) + std::string(name);
}

std::vector<std::int64_t> numbers(const PickleValue& value) {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < value.size(); ++i) out.push_back(value[i].integer());
  return out;
}

TorchDtype dtype_of(const PickleValue& properties) {
  if (properties.is(PickleKind::Object) && properties.state() &&
      properties.state()->is(PickleKind::Tuple))
    return (*properties.state())[0].dtype();
  return properties.at("dtype").dtype();
}

DcpTensor tensor_of(const PickleValue& value, const std::string& name) {
  DcpTensor out;
  out.dtype = dtype_of(value.at("properties"));
  out.shape = numbers(value.at("size"));
  if (out.shape.size() > 64 || !count_elements(out.shape))
    value.refuse("tensor '" + name + "' has an impossible shape");
  const auto chunks = value.at("chunks");
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    DcpChunk chunk{numbers(chunks[i].at("offsets")), numbers(chunks[i].at("sizes")), {}};
    bool inside =
        chunk.offsets.size() == out.shape.size() && chunk.sizes.size() == out.shape.size();
    for (std::size_t d = 0; inside && d < out.shape.size(); ++d) {
      inside = chunk.offsets[d] >= 0 && chunk.sizes[d] >= 0 && chunk.offsets[d] <= out.shape[d] &&
               chunk.sizes[d] <= out.shape[d] - chunk.offsets[d];
    }
    if (!inside) value.refuse("tensor '" + name + "' has a chunk that lies outside of it");
    out.chunks.push_back(std::move(chunk));
  }
  return out;
}

bool overlap(const DcpChunk& a, const DcpChunk& b) {
  for (std::size_t d = 0; d < a.sizes.size(); ++d) {
    if (a.offsets[d] >= b.offsets[d] + b.sizes[d] || b.offsets[d] >= a.offsets[d] + a.sizes[d])
      return false;
  }
  return true;
}

/// Volumes add up and no two overlap: the chunks cover the tensor exactly.
void check_tiling(const PickleValue& root, const std::string& name, DcpTensor& tensor) {
  std::erase_if(tensor.chunks, [](const DcpChunk& chunk) {
    return std::ranges::find(chunk.sizes, 0) != chunk.sizes.end();
  });
  const auto& chunks = tensor.chunks;
  if (chunks.size() > kMaxChunks) root.refuse("tensor '" + name + "' has more than 4096 chunks");
  std::uint64_t covered = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    covered += *count_elements(chunks[i].sizes);
    for (std::size_t k = 0; k < i; ++k) {
      if (overlap(chunks[i], chunks[k]))
        root.refuse("tensor '" + name + "' has chunks that overlap");
    }
  }
  if (covered != *count_elements(tensor.shape))
    root.refuse("tensor '" + name + "' is not covered by its chunks");
}

DcpItem item_of(const PickleValue& value) {
  if (const auto transforms = value.find("transform_descriptors");
      transforms && !transforms->is(PickleKind::None) && transforms->size() > 0) {
    throw Failure{Errc::Unsupported,
                  "DCP item with transform_descriptors (compression), which is not read"};
  }
  const auto offset = value.at("offset").integer();
  const auto length = value.at("length").integer();
  DcpItem out{std::string(value.at("relative_path").text()), static_cast<std::uint64_t>(offset),
              static_cast<std::uint64_t>(length)};
  if (offset < 0 || length < 0) value.refuse("an item has a negative offset or length");
  if (!is_plain_file_name(out.file))
    value.refuse("an item should name a file beside .metadata, not '" + out.file.substr(0, 200) +
                 "'");
  return out;
}

class DcpParser {
 public:
  explicit DcpParser(const PickleValue& root) : root_(root) {}

  DcpMetadata parse() {
    if (!is_class(root_, "Metadata"))
      root_.refuse("is no Metadata of torch.distributed.checkpoint");
    const auto entries = root_.at("state_dict_metadata");
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto name = std::string(entries.key(i).text());
      const auto value = entries.value(i);
      if (is_class(value, "TensorStorageMetadata")) {
        out_.tensors[name] = tensor_of(value, name);
        const auto& chunks = out_.tensors[name].chunks;
        for (std::size_t c = 0; c < chunks.size(); ++c) by_offset_[name][chunks[c].offsets] = c;
      } else if (!is_class(value, "BytesStorageMetadata")) {
        entries.refuse("'" + name + "' is neither a tensor nor bytes");
      }
    }
    read_items();
    for (auto& [name, tensor] : out_.tensors) {
      check_tiling(root_, name, tensor);
      for (const auto& chunk : tensor.chunks) {
        if (chunk.item.file.empty())
          root_.refuse("tensor '" + name + "' has a chunk without bytes");
        if (chunk.item.length > 0) used_.push_back(&chunk.item);
      }
    }
    check_disjoint();
    return std::move(out_);
  }

 private:
  void read_items() {
    const auto items = root_.at("storage_data");
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto index = items.key(i);
      const auto name = std::string(index.at("fqn").text());
      auto item = item_of(items.value(i));
      const auto found = out_.tensors.find(name);
      if (found == out_.tensors.end()) {
        out_.objects[name] = std::move(item);
        continue;
      }
      const auto offset = index.find("offset");
      place(name,
            offset && !offset->is(PickleKind::None)
                ? numbers(*offset)
                : std::vector<std::int64_t>(found->second.shape.size(), 0),
            std::move(item));
    }
  }

  void place(const std::string& tensor, const std::vector<std::int64_t>& offsets, DcpItem item) {
    const auto& chunks = by_offset_[tensor];
    const auto found = chunks.find(offsets);
    if (found == chunks.end())
      root_.refuse("tensor '" + tensor + "' has bytes for a chunk that it does not have");
    out_.tensors[tensor].chunks[found->second].item = std::move(item);
  }

  void check_disjoint() {
    for (const auto& [name, item] : out_.objects) used_.push_back(&item);
    std::ranges::sort(used_, {},
                      [](const DcpItem* item) { return std::tie(item->file, item->offset); });
    for (std::size_t i = 1; i < used_.size(); ++i) {
      const auto& before = *used_[i - 1];
      if (before.file == used_[i]->file && used_[i]->offset - before.offset < before.length)
        root_.refuse("two items overlap in " + before.file + " (byte " +
                     std::to_string(used_[i]->offset) + ")");
    }
  }

  PickleValue root_;
  DcpMetadata out_;
  std::map<std::string, std::map<std::vector<std::int64_t>, std::size_t>> by_offset_;
  std::vector<const DcpItem*> used_;
};

}  // namespace

DcpMetadata parse_dcp_metadata(std::span<const std::byte> bytes, const std::string& what) {
  const auto pickle = read_pickle_bytes(bytes, nullptr, what, options());
  return DcpParser{pickle.root}.parse();
}

}  // namespace troupe::detail
