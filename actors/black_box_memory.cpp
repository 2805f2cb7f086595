#include "black_box_memory.hpp"

#include <troupe/errors.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace troupe::detail {

namespace {

[[noreturn]] void cannot(const char* what) {
  throw Failure{Errc::StartFailed, std::string("cannot make a rank's record: ") + what + ": " + std::strerror(errno) +
                                       " (see ulimit -n, ulimit -v, and the memory that this container may use)"};
}

}  // namespace

BlackBoxMemory::BlackBoxMemory(Fd fd, bool shared) : fd_(std::move(fd)) {
  const int flags = (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS) | MAP_NORESERVE;
  void* memory = mmap(nullptr, sizeof(BlackBox), PROT_READ | PROT_WRITE, flags, fd_.get(), 0);
  if (memory == MAP_FAILED) cannot("mmap");
  box_ = static_cast<BlackBox*>(memory);  // all zero is what a box begins as
}

BlackBoxMemory::~BlackBoxMemory() { munmap(box_, sizeof(BlackBox)); }

std::shared_ptr<BlackBoxMemory> BlackBoxMemory::of_thread() { return std::shared_ptr<BlackBoxMemory>{new BlackBoxMemory{Fd{}, false}}; }

std::shared_ptr<BlackBoxMemory> BlackBoxMemory::to_share() {
  Fd fd{memfd_create("troupe-black-box", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (fd.get() < 0) cannot("memfd_create");
  if (ftruncate(fd.get(), sizeof(BlackBox)) != 0) cannot("ftruncate");
  // Without these the child could shrink the file and kill its reader by SIGBUS.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) cannot("F_ADD_SEALS");
  return std::shared_ptr<BlackBoxMemory>{new BlackBoxMemory{std::move(fd), true}};
}

std::shared_ptr<BlackBoxMemory> BlackBoxMemory::open(int fd) {
  struct stat status {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size != static_cast<off_t>(sizeof(BlackBox))) {
    throw Failure{Errc::ProtocolError, "descriptor " + std::to_string(fd) + " is no black box of this program"};
  }
  return std::shared_ptr<BlackBoxMemory>{new BlackBoxMemory{Fd{fd}, true}};
}

}  // namespace troupe::detail
