#include "program_file.hpp"

#include <troupe/errors.hpp>

#include "../rank_process.hpp"

#include <digest.hpp>

#include <fstream>
#include <map>
#include <mutex>
#include <vector>

namespace troupe::detail {

namespace {

ProgramDigest read(const std::string& path) {
  std::ifstream file{path, std::ios::binary};
  if (!file) throw Failure{Errc::FileNotFound, path + " cannot be read"};
  ProgramDigest result;
  DigestStream digest;
  std::vector<char> bytes(1 << 20);
  while (file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())), file.gcount() > 0) {
    const auto count = static_cast<std::size_t>(file.gcount());
    digest.update(std::as_bytes(std::span{bytes.data(), count}));
    result.bytes += count;
  }
  if (file.bad()) throw Failure{Errc::FileNotFound, path + " cannot be read"};
  result.digest = digest.value();
  return result;
}

}  // namespace

ProgramDigest program_digest(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, ProgramDigest> known;  // by path and what identifies the file
  const auto key = path + "\n" + program_identity(path);
  const std::lock_guard lock{mutex};
  if (const auto found = known.find(key); found != known.end()) return found->second;
  return known[key] = read(path);
}

}  // namespace troupe::detail
