#include <io/async_io.hpp>
#include <io/page_buffer.hpp>
#include "scratch_file.hpp"
#include "state_store.hpp"

#include <troupe/errors.hpp>

#include <ATen/ops/empty.h>
#include <ATen/ops/fill.h>
#include <ATen/ops/from_blob.h>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

namespace troupe::detail {

namespace {

std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

/// Layout: a block is a row of chunks; a chunk is its elements of every slot, one slot after the other, each padded to the
/// file's alignment, so that one access moves all that an update of the chunk needs.
class DiskStore final : public StateStore {
 public:
  DiskStore(std::vector<double> initial, const Offload& offload, int rank, DiskIo io)
      : initial_(std::move(initial)), chunk_bytes_(offload.chunk_bytes), file_(offload.path, rank), buffers_(static_cast<std::size_t>(offload.num_buffers)) {
    if (io != DiskIo::Threads) io_ = make_uring_io(file_.fd(), offload.num_buffers);
    if (!io_ && io == DiskIo::IoUring) {
      throw Failure{Errc::Unsupported, "optimizer offload: io_uring was asked for, but this build, the kernel or its limits do not have it; use DiskIo::Any"};
    }
    if (!io_) io_ = make_thread_io(file_.fd(), offload.num_buffers);
  }

  void reserve(const std::vector<BlockSize>& blocks) override {
    auto end = end_;
    for (const auto& size : blocks) end += room(layout(size));
    file_.reserve(end);
  }

  std::size_t add(BlockSize size) override {
    auto block = layout(size);
    block.offset = end_;
    end_ += room(block);
    file_.reserve(end_);
    for (auto& buffer : buffers_) {
      const auto bytes = static_cast<std::size_t>(chunk_size(block, 0));
      if (buffer.bytes() < bytes) buffer = PageBuffer{bytes};
    }
    blocks_.push_back(std::move(block));
    return blocks_.size() - 1;
  }

  void update(const std::vector<Segment>& segments, const Apply& apply) override {
    try {
      run(visits(segments), segments, apply);
    } catch (...) {
      for (int b = 0; b < num_buffers(); ++b) (void)io_->wait(b);  // nothing may be under way into memory that is used again
      throw;
    }
  }

  at::Tensor read(std::size_t slot, std::size_t block, std::int64_t first, std::int64_t count) override {
    auto values = at::empty({count}, blocks_[block].dtype);
    auto* target = static_cast<std::byte*>(values.data_ptr());
    touch(block, first, count, false, slot, [&](std::byte* memory, std::int64_t at, std::int64_t bytes) {
      std::memcpy(target + at, memory, static_cast<std::size_t>(bytes));
    });
    return values;
  }

  void write(std::size_t slot, std::size_t block, std::int64_t first, const at::Tensor& values) override {
    const auto* source = static_cast<const std::byte*>(values.data_ptr());
    touch(block, first, values.numel(), true, slot, [&](std::byte* memory, std::int64_t at, std::int64_t bytes) {
      std::memcpy(memory, source + at, static_cast<std::size_t>(bytes));
    });
  }

  bool on_disk() const noexcept override { return true; }

  std::vector<std::span<const std::byte>> map(std::size_t slot, std::size_t block_index, std::int64_t first, std::int64_t count,
                                              std::shared_ptr<void>& mapping) override {
    if (!mapping && end_ > 0) {
      const auto bytes = static_cast<std::size_t>(end_);
      void* memory = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_.fd(), 0);
      if (memory == MAP_FAILED) file_.check(errno, "mapped");
      mapping = {memory, [bytes](void* p) { ::munmap(p, bytes); }};
    }
    const auto* file = static_cast<const std::byte*>(mapping.get());
    const auto& block = blocks_[block_index];
    std::vector<std::span<const std::byte>> runs;
    for (auto at = first; at < first + count;) {
      const auto chunk = at / block.chunk;
      const auto end = std::min(first + count, (chunk + 1) * block.chunk);
      runs.emplace_back(file + chunk_offset(block, chunk) + static_cast<std::int64_t>(slot) * slot_size(block, chunk) +
                            (at - chunk * block.chunk) * block.element_bytes,
                        static_cast<std::size_t>((end - at) * block.element_bytes));
      at = end;
    }
    return runs;
  }

  void clear() override {
    blocks_.clear();
    end_ = 0;
  }

 private:
  struct Block {
    std::int64_t count = 0;
    at::ScalarType dtype = at::kFloat;
    std::int64_t element_bytes = 4;
    std::int64_t chunk = 1;  // elements of all chunks but the last
    std::int64_t offset = 0;
    std::vector<bool> written{};  // by chunk; an unwritten one holds the initial values
  };
  /// A chunk to read, update and write, and the segments that have elements in it: [begin, end).
  struct Visit {
    std::size_t block;
    std::int64_t chunk;
    std::size_t begin, end;
  };

  [[nodiscard]] int num_buffers() const noexcept { return static_cast<int>(buffers_.size()); }
  [[nodiscard]] std::int64_t num_slots() const noexcept { return static_cast<std::int64_t>(initial_.size()); }

  [[nodiscard]] Block layout(BlockSize size) const {
    Block block{.count = size.count, .dtype = size.dtype, .element_bytes = static_cast<std::int64_t>(c10::elementSize(size.dtype))};
    const auto slot_bytes = std::max(ScratchFile::alignment, chunk_bytes_ / num_slots() / ScratchFile::alignment * ScratchFile::alignment);
    block.chunk = slot_bytes / block.element_bytes;
    block.written.resize(static_cast<std::size_t>((size.count + block.chunk - 1) / block.chunk));
    return block;
  }
  [[nodiscard]] std::int64_t elements_in(const Block& block, std::int64_t chunk) const {
    return std::clamp<std::int64_t>(block.count - chunk * block.chunk, 0, block.chunk);
  }
  [[nodiscard]] std::int64_t slot_size(const Block& block, std::int64_t chunk) const {
    return round_up(elements_in(block, chunk) * block.element_bytes, ScratchFile::alignment);
  }
  [[nodiscard]] std::int64_t chunk_size(const Block& block, std::int64_t chunk) const { return num_slots() * slot_size(block, chunk); }
  [[nodiscard]] std::int64_t chunk_offset(const Block& block, std::int64_t chunk) const { return block.offset + chunk * num_slots() * block.chunk * block.element_bytes; }
  [[nodiscard]] std::int64_t room(const Block& block) const {
    const auto last = static_cast<std::int64_t>(block.written.size()) - 1;
    return last < 0 ? 0 : last * num_slots() * block.chunk * block.element_bytes + chunk_size(block, last);
  }

  [[nodiscard]] std::vector<Visit> visits(const std::vector<Segment>& segments) const {
    std::vector<Visit> visits;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const auto& s = segments[i];
      const auto chunk = blocks_[s.block].chunk;
      for (auto c = s.first / chunk; c <= (s.first + s.elements.count - 1) / chunk; ++c) {
        if (!visits.empty() && visits.back().block == s.block && visits.back().chunk == c) visits.back().end = i + 1;
        else visits.push_back({s.block, c, i, i + 1});
      }
    }
    return visits;
  }

  /// Reads go ahead of updates by half the buffers; the others are on their way back.
  void run(const std::vector<Visit>& visits, const std::vector<Segment>& segments, const Apply& apply) {
    const auto count = visits.size();
    const auto num = buffers_.size();
    const auto ahead = (num + 1) / 2;
    std::size_t next = 0;
    for (std::size_t i = 0; i < count; ++i) {
      for (; next < count && next < i + ahead; ++next) {
        const auto b = static_cast<int>(next % num);
        file_.check(io_->wait(b), "written");
        begin_read(b, visits[next].block, visits[next].chunk);
      }
      const auto b = static_cast<int>(i % num);
      file_.check(io_->wait(b), "read");
      update_chunk(buffers_[i % num].data(), visits[i], segments, apply);
      begin_write(b, visits[i].block, visits[i].chunk);
    }
    for (int b = 0; b < num_buffers(); ++b) file_.check(io_->wait(b), "written");
  }

  void update_chunk(std::byte* memory, const Visit& visit, const std::vector<Segment>& segments, const Apply& apply) const {
    const auto& block = blocks_[visit.block];
    const auto begin = visit.chunk * block.chunk;
    const auto end = begin + elements_in(block, visit.chunk);
    for (auto i = visit.begin; i < visit.end; ++i) {
      const auto& s = segments[i];
      const auto first = std::max(begin, s.first);
      const auto last = std::min(end, s.first + s.elements.count);
      auto part = s.elements.part(first - s.first, last - first);
      for (std::int64_t slot = 0; slot < num_slots(); ++slot) {
        part.state[static_cast<std::size_t>(slot)] = memory + slot * slot_size(block, visit.chunk) + (first - begin) * block.element_bytes;
      }
      apply(part, s);
    }
  }

  void begin_read(int buffer, std::size_t block_index, std::int64_t chunk) {
    auto& block = blocks_[block_index];
    auto* memory = buffers_[static_cast<std::size_t>(buffer)].data();
    if (block.written[static_cast<std::size_t>(chunk)]) {
      io_->begin(buffer, AsyncIo::Kind::Read, memory, static_cast<std::size_t>(chunk_size(block, chunk)), chunk_offset(block, chunk));
      return;
    }
    for (std::int64_t slot = 0; slot < num_slots(); ++slot) {
      at::from_blob(memory + slot * slot_size(block, chunk), {elements_in(block, chunk)}, block.dtype).fill_(initial_[static_cast<std::size_t>(slot)]);
    }
  }

  void begin_write(int buffer, std::size_t block_index, std::int64_t chunk) {
    auto& block = blocks_[block_index];
    io_->begin(buffer, AsyncIo::Kind::Write, buffers_[static_cast<std::size_t>(buffer)].data(), static_cast<std::size_t>(chunk_size(block, chunk)),
               chunk_offset(block, chunk));
    block.written[static_cast<std::size_t>(chunk)] = true;
  }

  /// Calls use(memory, byte of the range, bytes) for the parts of `count` elements from `first` on, chunk by chunk.
  template <class Use>
  void touch(std::size_t block_index, std::int64_t first, std::int64_t count, bool writes, std::size_t slot, const Use& use) {
    const auto& block = blocks_[block_index];
    for (auto at = first; at < first + count;) {
      const auto chunk = at / block.chunk;
      const auto end = std::min(first + count, (chunk + 1) * block.chunk);
      begin_read(0, block_index, chunk);
      file_.check(io_->wait(0), "read");
      use(buffers_[0].data() + static_cast<std::int64_t>(slot) * slot_size(block, chunk) + (at - chunk * block.chunk) * block.element_bytes,
          (at - first) * block.element_bytes, (end - at) * block.element_bytes);
      if (writes) {
        begin_write(0, block_index, chunk);
        file_.check(io_->wait(0), "written");
      }
      at = end;
    }
  }

  std::vector<double> initial_;
  std::int64_t chunk_bytes_;
  ScratchFile file_;
  std::vector<PageBuffer> buffers_;
  std::vector<Block> blocks_;
  std::int64_t end_ = 0;
  std::unique_ptr<AsyncIo> io_;  // last: it ends before buffers and file
};

}  // namespace

std::unique_ptr<StateStore> make_disk_store(std::vector<double> initial, const Offload& offload, int rank, DiskIo io) {
  if (offload.chunk_bytes < 1 || offload.num_buffers < 1) {
    throw Failure{Errc::InvalidConfig, "optimizer offload: chunk_bytes = " + std::to_string(offload.chunk_bytes) + " and num_buffers = " +
                                           std::to_string(offload.num_buffers) + ", but both must be at least 1"};
  }
  return std::make_unique<DiskStore>(std::move(initial), offload, rank, io);
}

}  // namespace troupe::detail
