#include "symbols.hpp"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>

namespace troupe::detail {

namespace {

constexpr std::size_t longest_name = 160;

/// One executable mapping of a file.
struct Module {
  std::uint64_t begin = 0, end = 0, offset = 0;
  std::string path;
};

/// An address that is looked for in a file.
struct Wanted {
  std::size_t index;           // of the address
  std::uint64_t file_offset;
  std::uint64_t address = 0;   // as the file's symbols count
  std::uint64_t found = 0;     // begin of the symbol
  std::string name;
};

std::string hex(std::uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::vector<Module> modules_of(std::string_view maps) {
  std::vector<Module> modules;
  while (!maps.empty()) {
    const std::string line{maps.substr(0, maps.find('\n'))};
    maps.remove_prefix(std::min(maps.size(), line.size() + 1));
    Module module;
    unsigned long long begin = 0, end = 0, offset = 0;
    char rights[8] = {};
    int path = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx %7s %llx %*s %*s %n", &begin, &end, rights, &offset, &path) < 4) continue;
    if (rights[2] != 'x' || path == 0 || static_cast<std::size_t>(path) >= line.size()) continue;
    modules.push_back({begin, end, offset, line.substr(static_cast<std::size_t>(path))});
  }
  return modules;
}

/// A file in memory, read-only; every look at it is checked.
class Image {
 public:
  explicit Image(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
      size_ = static_cast<std::size_t>(status.st_size);
      void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      if (memory != MAP_FAILED) bytes_ = static_cast<const std::byte*>(memory);
    }
    if (fd >= 0) close(fd);
  }
  ~Image() {
    if (bytes_) munmap(const_cast<std::byte*>(bytes_), size_);
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  template <class T>
  [[nodiscard]] std::optional<T> at(std::uint64_t offset) const {
    if (!bytes_ || offset > size_ || size_ - offset < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes_ + offset, sizeof value);
    return value;
  }
  [[nodiscard]] std::string text(std::uint64_t offset) const {
    if (!bytes_ || offset >= size_) return {};
    const auto* begin = reinterpret_cast<const char*>(bytes_ + offset);
    return {begin, strnlen(begin, std::min<std::uint64_t>(size_ - offset, 4096))};
  }

 private:
  const std::byte* bytes_ = nullptr;
  std::size_t size_ = 0;
};

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text{abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free};
  std::string result = text ? text.get() : name;
  if (result.size() > longest_name) result = result.substr(0, longest_name) + "…";
  return result;
}

void find_in_table(const Image& image, const Elf64_Shdr& table, const Elf64_Shdr& strings, std::vector<Wanted>& wanted) {
  for (std::uint64_t at = 0; at + sizeof(Elf64_Sym) <= table.sh_size; at += sizeof(Elf64_Sym)) {
    const auto symbol = image.at<Elf64_Sym>(table.sh_offset + at);
    if (!symbol) return;
    if (ELF64_ST_TYPE(symbol->st_info) != STT_FUNC || symbol->st_size == 0) continue;
    for (auto& one : wanted) {
      if (!one.name.empty() || one.address < symbol->st_value || one.address - symbol->st_value >= symbol->st_size) continue;
      one.name = image.text(strings.sh_offset + symbol->st_name);
      one.found = symbol->st_value;
    }
  }
}

void find_names(const std::string& path, std::vector<Wanted>& wanted) {
  const Image image{path};
  const auto header = image.at<Elf64_Ehdr>(0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64) return;
  for (int i = 0; i < header->e_phnum; ++i) {
    const auto segment = image.at<Elf64_Phdr>(header->e_phoff + static_cast<std::uint64_t>(i) * sizeof(Elf64_Phdr));
    if (!segment || segment->p_type != PT_LOAD) continue;
    for (auto& one : wanted) {
      if (one.file_offset >= segment->p_offset && one.file_offset - segment->p_offset < segment->p_filesz) {
        one.address = one.file_offset - segment->p_offset + segment->p_vaddr;
      }
    }
  }
  const auto section = [&](std::uint64_t i) { return image.at<Elf64_Shdr>(header->e_shoff + i * sizeof(Elf64_Shdr)); };
  for (const auto type : {SHT_SYMTAB, SHT_DYNSYM}) {
    for (int i = 0; i < header->e_shnum; ++i) {
      const auto table = section(static_cast<std::uint64_t>(i));
      if (!table || table->sh_type != static_cast<Elf64_Word>(type)) continue;
      if (const auto strings = section(table->sh_link)) find_in_table(image, *table, *strings, wanted);
    }
  }
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

std::vector<std::string> symbolize(std::string_view maps, std::span<const std::uint64_t> addresses, bool calls) {
  const auto modules = modules_of(maps);
  std::vector<std::string> lines(addresses.size());
  std::map<std::string, std::vector<Wanted>> by_file;
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    lines[i] = hex(addresses[i]);
    const auto look_at = addresses[i] - (calls && i > 0 ? 1 : 0);  // the first is where it stands, not where it returns to
    const auto module = std::ranges::find_if(modules, [&](const Module& m) { return look_at >= m.begin && look_at < m.end; });
    if (module == modules.end()) continue;
    by_file[module->path].push_back({i, look_at - module->begin + module->offset, 0, 0, {}});
  }
  for (auto& [path, wanted] : by_file) {
    if (path.starts_with('/')) find_names(path, wanted);
    for (const auto& one : wanted) {
      const auto place = file_name(path) + "+" + hex(one.address != 0 ? one.address : one.file_offset);
      lines[one.index] = one.name.empty() ? place : demangled(one.name) + "+" + hex(one.address - one.found) + " in " + place;
    }
  }
  return lines;
}

}  // namespace troupe::detail
