#include "targets.hpp"

#include <digest.hpp>
#include <rank_file.hpp>

#include <troupe/errors.hpp>
#include <troupe/manifest.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

namespace troupe::fuzz {

namespace {

constexpr std::size_t kHead = 12, kTail = 8;  // mark and version; digest

std::string contents(const std::string& file) { return file.substr(kHead, file.size() - kHead - kTail); }

/// `bytes` as the contents of a file that begins as `like` does.
std::string framed(const std::string& like, const std::string& bytes) {
  auto file = like.substr(0, kHead) + bytes;
  const auto digest = digest_of(std::string_view{file});
  return file.append(reinterpret_cast<const char*>(&digest), sizeof digest);
}

[[noreturn]] void give_up(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::abort();
}

template <class Parse>
void try_parse(const Parse& parse) {
  try {
    parse();
  } catch (const Failure& failure) {
    if (failure.code() != Errc::FileCorrupt || !std::strstr(failure.what(), "fuzzed: ")) give_up(failure.what());
  }
}

Manifest parse_manifest(const std::string& file) { return manifest_from_bytes(std::as_bytes(std::span{file}), "fuzzed"); }

detail::RankFile some_rank_file() {
  detail::RankFile file;
  file.num_writers = 2;
  file.attempt = 3;
  file.stems = {{"model", 99}};
  file.written = {{"model.safetensors", 8192, {{0, 4096, 5}, {4096, 100, 6}}}};
  file.tensors = {{"model", "w", SafetensorsDtype::BF16, {2, 25}, 0, 4096, 100}};
  file.state.emplace();
  file.state->learning_rates = {{0.1}};
  file.state->loaders = {{1, 2, 3, 4}};
  file.state->objects = {{"a", "b"}};
  file.own = {"rng", {{"c", "d"}}};
  return file;
}

}  // namespace

int manifest(const std::uint8_t* data, std::size_t size) {
  static const auto like = to_bytes(Manifest{});
  const std::string bytes{reinterpret_cast<const char*>(data), size};
  try_parse([&] { (void)parse_manifest(bytes); });
  try_parse([&] {
    const auto file = framed(like, bytes);
    const auto read = parse_manifest(file);
    if (to_bytes(read) != file) give_up("a manifest that was read is written otherwise");
    (void)to_text(read);
  });
  return 0;
}

int rank_file(const std::uint8_t* data, std::size_t size) {
  static const auto like = detail::to_bytes(detail::RankFile{});
  const std::string bytes{reinterpret_cast<const char*>(data), size};
  try_parse([&] { (void)detail::rank_file_from_bytes(bytes, "fuzzed"); });
  try_parse([&] {
    const auto once = detail::to_bytes(detail::rank_file_from_bytes(framed(like, bytes), "fuzzed"));
    if (detail::to_bytes(detail::rank_file_from_bytes(once, "fuzzed")) != once) give_up("a rank file that was read is written otherwise");
  });
  return 0;
}

std::vector<std::string> manifest_seeds() {
  Manifest full;
  full.metrics = Metrics{{"loss", 0.5}, {"epoch", 2}, {"done", true}, {"note", "x"}};
  full.strategy = "zero3";
  const std::vector<Segment> segments{{0, 4096, 1}, {4096, 100, 2}};
  full.files = {{"config.json", 0, digest_of(std::vector<Segment>{}), {}, {}},
                    {"model.safetensors", 4196, digest_of(segments), segments, {{0, 0, 4096}, {1, 4096, 4196}}}};
  full.tensors = {{"model", "w", SafetensorsDtype::BF16, {2, 25}, 1, 4096, 100}};
  return {contents(to_bytes(Manifest{})), contents(to_bytes(full))};
}

std::vector<std::string> rank_file_seeds() {
  return {contents(detail::to_bytes(detail::RankFile{})), contents(detail::to_bytes(some_rank_file()))};
}

}  // namespace troupe::fuzz
