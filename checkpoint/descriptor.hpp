#pragma once

#include <unistd.h>

namespace troupe::detail {

/// A file descriptor, closed at the end of the scope; negative: none.
struct Descriptor {
  explicit Descriptor(int fd) : value(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
  int value;
};

}  // namespace troupe::detail
