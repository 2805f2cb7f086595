#include <io/stream_copy.hpp>

#include <gtest/gtest.h>

#include <vector>

namespace troupe {
namespace {

TEST(StreamCopy, CopiesTheBytesAndNoOthersAtEveryAlignment) {
  std::vector<std::byte> from(700);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + 1);
  for (std::size_t to_at = 0; to_at < 65; ++to_at) {
    for (const std::size_t from_at : {0, 1, 16, 63}) {
      for (const std::size_t bytes : {0, 1, 15, 63, 64, 65, 127, 128, 300, 511}) {
        std::vector<std::byte> to(700, std::byte{0xEE}), want = to;
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(from_at), bytes, want.begin() + static_cast<std::ptrdiff_t>(to_at));
        detail::stream_copy(to.data() + to_at, from.data() + from_at, bytes);
        ASSERT_EQ(to, want) << bytes << " bytes from " << from_at << " to " << to_at;
      }
    }
  }
}

}  // namespace
}  // namespace troupe
