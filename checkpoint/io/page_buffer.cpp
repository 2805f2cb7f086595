#include "page_buffer.hpp"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace troupe::detail {

namespace {
constexpr std::size_t kHugePage = 2 << 20;
}

PageBuffer::PageBuffer(std::size_t bytes) : bytes_(bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc{};
  data_ = static_cast<std::byte*>(data);
  // A disk takes an access of few large pages up to half as fast again as one of many small ones.
  if (bytes >= kHugePage) (void)::madvise(data, bytes, MADV_HUGEPAGE);
}

PageBuffer::~PageBuffer() {
  if (data_) ::munmap(data_, bytes_);
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace troupe::detail
