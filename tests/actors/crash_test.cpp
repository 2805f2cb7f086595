#include "crash_report.hpp"
#include "memory_kills.hpp"
#include "scenario.hpp"
#include "symbols.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>

namespace c10 {
// As LibTorch's by name, which is all that the control plane knows of it.
class OutOfMemoryError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};
}  // namespace c10

namespace troupe {

__attribute__((noinline)) int a_function_to_find(int x) { return x + 1; }

namespace {

using testing::HasSubstr;

std::string own_maps() {
  std::ostringstream text;
  text << std::ifstream{"/proc/self/maps"}.rdbuf();
  return text.str();
}

TEST(Symbolize, FindsFunctionsOfThisProgramAndOfLibraries) {
  const std::uint64_t addresses[] = {reinterpret_cast<std::uint64_t>(&a_function_to_find), reinterpret_cast<std::uint64_t>(&std::fopen) + 1};
  const auto lines = detail::symbolize(own_maps(), addresses);
  EXPECT_THAT(lines[0], HasSubstr("troupe::a_function_to_find(int)+0x0 in actors_crash_test+0x"));
  EXPECT_THAT(lines[1], HasSubstr("libc.so.6+0x"));
}

TEST(Symbolize, GivesTheAddressWhereNothingIsKnown) {
  const std::uint64_t addresses[] = {0x10, 0x20};
  EXPECT_EQ(detail::symbolize(own_maps(), addresses), (std::vector<std::string>{"0x10", "0x20"}));
  EXPECT_EQ(detail::symbolize("", addresses), (std::vector<std::string>{"0x10", "0x20"}));
  EXPECT_EQ(detail::symbolize("rubbish\n1-\n\n10-30 r-xp 0 0 0 /no/such/file", addresses), (std::vector<std::string>{"file+0x0", "file+0xf"}));
}

TEST(Symbolize, TrustsNoFile) {
  const TempDir directory;
  const auto path = directory.path() / "module";
  std::ifstream self{"/proc/self/exe", std::ios::binary};
  std::string head(4096, '\0');
  self.read(head.data(), 4096);
  const std::uint64_t addresses[] = {0x1234};
  const auto maps = "1000-2000 r-xp 0 0 0 " + path.string();
  for (std::size_t length = 0; length <= head.size(); length += 61) {
    std::ofstream{path, std::ios::binary} << head.substr(0, length);
    EXPECT_THAT(detail::symbolize(maps, addresses)[0], HasSubstr("module+0x")) << length;
  }
  for (std::size_t at = 0; at < 512; ++at) {
    auto wrong = head;
    wrong[at] = static_cast<char>(wrong[at] ^ 0xFF);
    std::ofstream{path, std::ios::binary} << wrong;
    EXPECT_FALSE(detail::symbolize(maps, addresses)[0].empty()) << at;
  }
}

TEST(CrashText, IsNothingWithoutACrashAndTrustsNoBox) {
  const auto box = std::unique_ptr<BlackBox>{new BlackBox{}};
  EXPECT_EQ(detail::crash_text(*box), "");
  auto* bytes = reinterpret_cast<unsigned char*>(box.get());
  for (std::size_t i = 0; i < sizeof(BlackBox); ++i) bytes[i] = static_cast<unsigned char>(i * 2654435761U >> 13);
  (void)detail::crash_text(*box);
  (void)detail::events_text(*box, std::chrono::steady_clock::now());
  (void)detail::stacks_text(*box, own_maps());
}

TEST(OutOfMemory, IsKnownByItsTypeOrItsWords) {
  EXPECT_TRUE(ran_out_of_memory(std::bad_alloc{}));
  EXPECT_TRUE(ran_out_of_memory(c10::OutOfMemoryError{"x"}));
  EXPECT_TRUE(ran_out_of_memory(std::runtime_error{"[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"}));
  EXPECT_FALSE(ran_out_of_memory(std::runtime_error{"boom"}));
}

class MemoryKillsTest : public testing::Test {
 protected:
  TempDir root_;
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_.path() / path).parent_path());
    std::ofstream{root_.path() / path} << text;
  }
};

TEST_F(MemoryKillsTest, AreReadFromTheControlGroupOfVersion2) {
  write("proc/self/cgroup", "0::/jobs/one\n");
  write("sys/fs/cgroup/jobs/one/memory.events", "low 0\noom 4\noom_kill 3\n");
  const auto kills = memory_kills(root_.path());
  ASSERT_TRUE(kills);
  EXPECT_EQ(kills->count, 3u);
  EXPECT_TRUE(kills->of_group);
}

TEST_F(MemoryKillsTest, AreReadAtTheRootInsideAContainer) {
  write("proc/self/cgroup", "0::/../outside\n");
  write("sys/fs/cgroup/memory.events", "oom_kill 2\n");
  EXPECT_EQ(memory_kills(root_.path())->count, 2u);
}

TEST_F(MemoryKillsTest, AreReadFromTheControlGroupOfVersion1) {
  write("proc/self/cgroup", "5:cpu:/x\n9:memory:/jobs/one\n0::/\n");
  write("sys/fs/cgroup/memory/jobs/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n");
  EXPECT_EQ(memory_kills(root_.path())->count, 7u);
}

TEST_F(MemoryKillsTest, AreTheMachinesWhereNoGroupTells) {
  write("proc/self/cgroup", "0::/\n");
  write("proc/vmstat", "nr_free_pages 1\noom_kill 11\n");
  const auto kills = memory_kills(root_.path());
  ASSERT_TRUE(kills);
  EXPECT_EQ(kills->count, 11u);
  EXPECT_FALSE(kills->of_group);
  EXPECT_FALSE(memory_kills(root_.path() / "nothing"));
}

TEST_F(MemoryKillsTest, AreTheCauseOnlyWhenTheCountHasMoved) {
  const MemoryKills before{3, "memory.events", true}, after{4, "memory.events", true}, machine{12, "vmstat", false};
  EXPECT_EQ(memory_verdict(before, after), "probably by the kernel, because memory ran out: oom_kill in memory.events went from 3 to 4");
  EXPECT_EQ(memory_verdict(before, before), "");
  EXPECT_EQ(memory_verdict(before, machine), "");
  EXPECT_EQ(memory_verdict({}, after), "");
  EXPECT_THAT(memory_verdict(MemoryKills{11, "vmstat", false}, machine), HasSubstr("perhaps"));
}

}  // namespace
}  // namespace troupe
