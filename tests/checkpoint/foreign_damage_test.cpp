// Every byte of small foreign files changed and every length cut: what is read is either refused or
// the same tensors.
#include <random>

#include "../fuzz/targets.hpp"
#include "foreign_helpers.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of_text;
using testing::fixture;
using testing::read_file;

std::map<std::string, std::vector<std::byte>> tensors_in(std::string& file,
                                                         const PickleOptions& options) {
  std::map<std::string, std::vector<std::byte>> out;
  const auto read = read_torch_bytes(bytes_of_text(file), nullptr, "damaged.bin", options);
  for (std::size_t i = 0; i < read.root.size(); ++i) {
    const auto value = read.root.value(i);
    if (value.is(PickleKind::Tensor))
      out[std::string(read.root.key(i).text())] = contiguous_bytes(value.tensor());
  }
  return out;
}

TEST(ForeignDamage, EveryFlippedByteIsRefusedOrChangesNothing) {
  auto file = read_file(fixture("module.bin"));
  const auto whole = tensors_in(file, {});
  ASSERT_GT(whole.size(), 5U);
  std::size_t found = 0;
  for (std::size_t at = 0; at < file.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xFF}) {
      const auto before = file[at];
      file[at] = static_cast<char>(before ^ flip);
      try {
        EXPECT_EQ(tensors_in(file, {}), whole) << "byte " << at;
      } catch (const Failure& failure) {
        EXPECT_THAT(failure.what(), ::testing::StartsWith("damaged.bin: "));
        ++found;
      }
      file[at] = before;
    }
  }
  EXPECT_GT(found, file.size());
}

TEST(ForeignDamage, WithoutChecksumsEveryFlippedByteGivesAValueOrAFailure) {
  auto file = read_file(fixture("dtypes.bin"));
  PickleOptions options;
  options.verify_crc = false;
  for (std::size_t at = 0; at < file.size(); ++at) {
    const auto before = file[at];
    for (const int flip : {0x01, 0x40, 0xFF}) {
      file[at] = static_cast<char>(before ^ flip);
      try {
        (void)tensors_in(file, options);
      } catch (const Failure&) {
      }
    }
    file[at] = before;
  }
}

TEST(ForeignDamage, EveryTruncationIsRefused) {
  const auto file = read_file(fixture("module.bin"));
  for (std::size_t length = 0; length < file.size(); ++length) {
    auto cut = file.substr(0, length);
    EXPECT_THROW((void)tensors_in(cut, {}), Failure) << length;
  }
}

/// Changes the pickle of a file of torch.save and sets its checksum right again.
std::string with_changed_pickle(std::string file, std::mt19937& draw) {
  const auto entries = detail::read_zip_directory(bytes_of_text(file), "test");
  for (const auto& [name, entry] : entries) {
    if (!name.ends_with("/data.pkl")) continue;
    for (unsigned flips = 1 + draw() % 3; flips > 0; --flips)
      file[entry.begin + draw() % entry.size] ^= static_cast<char>(1U << draw() % 8);
    auto pickle = file.substr(entry.begin, entry.size);
    const auto record = file.rfind(name) - 46;  // of the directory, which comes last
    file.replace(record + 16, 4, testing::number(detail::crc32(bytes_of_text(pickle)), 4));
  }
  return file;
}

TEST(ForeignDamage, ChangedPicklesOfDeepSpeedGiveAValueOrAFailure) {
  std::mt19937 draw{5};
  int refused = 0;
  int read = 0;
  for (const auto* const name : {"zero2_groups/t", "zero3/t"}) {
    const testing::Scratch scratch;
    fs::copy(fixture(name), scratch.path, fs::copy_options::recursive);
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator{fixture(name)}) files.push_back(entry.path());
    std::ranges::sort(files);
    for (int round = 0; round < 1500; ++round) {
      const auto& file = files[draw() % files.size()];
      testing::write_file(scratch.path / file.filename(),
                          with_changed_pickle(read_file(file), draw));
      const auto text = testing::failure_of([&] {
        const auto found = read_deepspeed(scratch.path);
        for (const auto& [key, tensor] : found.sections.at("model").tensors) (void)contiguous_bytes(tensor);
        ++read;
      });
      refused += text.empty() ? 0 : 1;
      EXPECT_THAT(text, ::testing::Not(::testing::HasSubstr("checksum")));
      fs::copy_file(file, scratch.path / file.filename(), fs::copy_options::overwrite_existing);
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 100);
}

/// The metadata of DCP has no checksum: a changed byte may change a value, never more.
TEST(ForeignDamage, EveryFlippedByteOfDcpMetadataGivesAValueOrAFailure) {
  for (const auto* const name : {"dcp/.metadata", "fsdp/optimizer_0/.metadata"}) {
    auto file = read_file(fixture(name));
    ASSERT_GT(file.size(), 100U);
    for (std::size_t at = 0; at < file.size(); ++at) {
      const auto before = file[at];
      for (const int flip : {0x01, 0x80, 0xFF}) {
        file[at] = static_cast<char>(before ^ flip);
        (void)fuzz::dcp_metadata(reinterpret_cast<const std::uint8_t*>(file.data()), file.size());
      }
      file[at] = before;
      (void)fuzz::dcp_metadata(reinterpret_cast<const std::uint8_t*>(file.data()), at);
    }
  }
}

}  // namespace
}  // namespace troupe
