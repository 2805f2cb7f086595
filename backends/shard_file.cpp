#include "shard_file.hpp"

#include <troupe/errors.hpp>

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <string>

namespace troupe::detail {

namespace {

std::int64_t whole_pages(std::int64_t bytes) {
  return std::max<std::int64_t>(1, (bytes + ScratchFile::alignment - 1) / ScratchFile::alignment) * ScratchFile::alignment;
}

}  // namespace

ShardFile::ShardFile(const Offload& offload, int rank, MemoryAccount account)
    : file_(offload.path, rank, "offload of parameters"), account_(std::move(account)), chunk_bytes_(whole_pages(offload.chunk_bytes)) {
  if (offload.chunk_bytes < 1 || offload.num_buffers < 1) {
    throw Failure{Errc::InvalidConfig, "offload of parameters: chunk_bytes = " + std::to_string(offload.chunk_bytes) + " and num_buffers = " +
                                           std::to_string(offload.num_buffers) + ", but both must be at least 1"};
  }
  of_ticket_.assign(static_cast<std::size_t>(offload.num_buffers), -1);
  io_ = make_uring_io(file_.fd(), offload.num_buffers);
  if (!io_) io_ = make_thread_io(file_.fd(), offload.num_buffers);
}

std::size_t ShardFile::add(std::int64_t bytes) {
  auto& region = regions_.emplace_back();
  region.offset = end_;
  region.bytes = whole_pages(bytes);
  end_ += region.bytes;
  file_.reserve(end_);
  return regions_.size() - 1;
}

void ShardFile::take_memory(Region& region) {
  region.charge = account_.charge(MemoryCategory::Gathered, region.bytes, MemoryAccount::Source::Elsewhere);
  region.memory = PageBuffer{static_cast<std::size_t>(region.bytes)};
}

void ShardFile::drop_memory(Region& region) {
  region.memory = PageBuffer{};
  region.charge = {};
  region.state = State::Away;
}

std::byte* ShardFile::fresh(std::size_t index) {
  auto& region = regions_[index];
  wait(index);
  if (region.state == State::Away) take_memory(region);
  region.state = State::Here;
  return region.memory.data();
}

void ShardFile::start_read(std::size_t index) {
  auto& region = regions_[index];
  if (region.state == State::Writing) {  // what is on its way there need not be read
    wait(index);
    region.state = State::Here;
  }
  if (region.state != State::Away) return;
  take_memory(region);
  move(index, State::Reading);
}

std::byte* ShardFile::finish_read(std::size_t index) {
  start_read(index);
  wait(index);
  regions_[index].state = State::Here;
  return regions_[index].memory.data();
}

void ShardFile::write_back(std::size_t index) {
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].state != State::Writing) continue;
    wait(i);
    drop_memory(regions_[i]);
  }
  move(index, State::Writing);
}

void ShardFile::let_go(std::size_t index) {
  wait(index);
  drop_memory(regions_[index]);
}

const std::byte* ShardFile::mapped(std::size_t index) {
  auto& region = regions_[index];
  wait(index);
  if (region.state == State::Writing) drop_memory(region);
  if (mapped_end_ < end_) {
    const auto bytes = static_cast<std::size_t>(end_);
    void* const memory = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_.fd(), 0);
    if (memory == MAP_FAILED) file_.check(errno, "mapped");
    mapping_ = {memory, [bytes](void* p) { ::munmap(p, bytes); }};
    mapped_end_ = end_;
  }
  return static_cast<const std::byte*>(mapping_.get()) + region.offset;
}

void ShardFile::move(std::size_t index, State direction) {
  auto& region = regions_[index];
  region.state = direction;
  region.begun = 0;
  waiting_.push_back(index);
  begin_chunks();
}

void ShardFile::begin_chunks() {
  for (std::size_t ticket = 0; ticket < of_ticket_.size() && !waiting_.empty(); ++ticket) {
    if (of_ticket_[ticket] >= 0) continue;
    auto& region = regions_[waiting_.front()];
    const auto bytes = std::min(chunk_bytes_, region.bytes - region.begun);
    io_->begin(static_cast<int>(ticket), region.state == State::Reading ? AsyncIo::Kind::Read : AsyncIo::Kind::Write, region.memory.data() + region.begun,
               static_cast<std::size_t>(bytes), region.offset + region.begun);
    of_ticket_[ticket] = static_cast<std::ptrdiff_t>(waiting_.front());
    ++region.under_way;
    region.begun += bytes;
    if (region.begun == region.bytes) waiting_.pop_front();
  }
}

void ShardFile::wait(std::size_t index) {
  auto& region = regions_[index];
  const auto moves = [&] { return (region.state == State::Reading || region.state == State::Writing) && (region.begun < region.bytes || region.under_way > 0); };
  while (moves()) {
    begin_chunks();
    auto ticket = std::find(of_ticket_.begin(), of_ticket_.end(), static_cast<std::ptrdiff_t>(index));
    if (ticket == of_ticket_.end()) ticket = std::find_if(of_ticket_.begin(), of_ticket_.end(), [](auto r) { return r >= 0; });  // others come first
    auto& owner = regions_[static_cast<std::size_t>(*ticket)];
    const int error = io_->wait(static_cast<int>(ticket - of_ticket_.begin()));
    *ticket = -1;
    --owner.under_way;
    file_.check(error, owner.state == State::Reading ? "read" : "written");
  }
}

DiskShard::DiskShard(std::shared_ptr<ShardFile> file, std::int64_t numel, at::ScalarType type, at::Tensor copy)
    : file_(std::move(file)),
      region_(file_->add(numel * static_cast<std::int64_t>(c10::elementSize(type)))),
      tensor_(at::empty({numel}, at::TensorOptions().dtype(type))),
      copy_(std::move(copy)) {
  show(nullptr);
}

DiskShard::~DiskShard() { show(nullptr); }

void DiskShard::show(std::byte* memory) {
  auto* storage = tensor_.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr{memory, at::kCPU});
  storage->set_nbytes(memory ? static_cast<std::size_t>(tensor_.numel()) * tensor_.element_size() : std::size_t{0});
}

void DiskShard::enter_empty() { show(file_->fresh(region_)); }

void DiskShard::start_enter() { file_->start_read(region_); }

void DiskShard::enter() { show(file_->finish_read(region_)); }

std::span<const std::byte> DiskShard::mapped(std::int64_t first, std::int64_t count) {
  const auto size = static_cast<std::int64_t>(tensor_.element_size());
  return {file_->mapped(region_) + first * size, static_cast<std::size_t>(count * size)};
}

void DiskShard::leave(bool changed) {
  if (changed && copy_.defined()) {
    const at::NoGradGuard no_grad;
    copy_.copy_(tensor_);
  }
  show(nullptr);
  if (changed) file_->write_back(region_);
  else file_->let_go(region_);
}

}  // namespace troupe::detail
