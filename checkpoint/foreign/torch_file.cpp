#include <string>
#include <troupe/errors.hpp>
#include <troupe/foreign_pickle.hpp>

#include "mapped_file.hpp"
#include "pickle_reader.hpp"
#include "zip_directory.hpp"

namespace troupe {
namespace {

using Entries = std::map<std::string, detail::ZipEntry, std::less<>>;

/// A zip archive of torch.save: everything lies in one folder, whose name is free.
class TorchArchive {
 public:
  TorchArchive(std::span<std::byte> bytes, std::string what, bool verify_crc)
      : bytes_(bytes),
        what_(std::move(what)),
        verify_crc_(verify_crc),
        entries_(detail::read_zip_directory(bytes, what_)) {
    find_folder();
    if (find("constants.pkl") || find("code/"))
      refuse("is a TorchScript archive, which is a program; save the module's state_dict() instead",
             Errc::Unsupported);
    if (const auto order = find("byteorder"); order && text(*order, "byteorder") != "little")
      refuse("was written on a big-endian machine", Errc::Unsupported);
  }

  [[nodiscard]] const detail::ZipEntry& pickle() const { return *find("data.pkl"); }

  [[nodiscard]] std::span<std::byte> storage(std::string_view key) const {
    const auto name = "data/" + std::string(key);
    const auto* const entry = find(name);
    if (!entry)
      refuse("lacks the storage '" + std::string(key.substr(0, 100)) + "' that its pickle names");
    return checked(*entry, name);
  }

  [[nodiscard]] std::span<std::byte> checked(const detail::ZipEntry& entry,
                                             const std::string& name) const {
    const auto out = bytes_.subspan(entry.begin, entry.size);
    if (verify_crc_ && entry.crc != 0 && detail::crc32(out) != entry.crc) {
      refuse("the checksum of '" + name + "' is wrong: its bytes " + std::to_string(entry.begin) +
             " to " + std::to_string(entry.begin + entry.size) +
             " changed after they were written");
    }
    return out;
  }

 private:
  [[noreturn]] void refuse(const std::string& text, Errc code = Errc::FileCorrupt) const {
    throw Failure{code, what_ + ": " + text};
  }

  void find_folder() {
    bool found = false;
    for (const auto& [name, entry] : entries_) {
      const auto slash = name.find('/');
      if (slash == std::string::npos || name.substr(slash) != "/data.pkl") continue;
      if (found) refuse("has more than one data.pkl");
      found = true;
      folder_ = name.substr(0, slash + 1);
    }
    if (!found)
      refuse("is a zip archive but not of torch.save: it has no data.pkl", Errc::Unsupported);
  }

  [[nodiscard]] const detail::ZipEntry* find(std::string_view name) const {
    const auto found = entries_.lower_bound(folder_ + std::string(name));
    if (found == entries_.end() || !found->first.starts_with(folder_ + std::string(name)))
      return nullptr;
    return name.ends_with('/') || found->first.size() == folder_.size() + name.size()
               ? &found->second
               : nullptr;
  }

  [[nodiscard]] std::string text(const detail::ZipEntry& entry, const std::string& name) const {
    const auto bytes = checked(entry, name);
    return {reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 100)};
  }

  std::span<std::byte> bytes_;
  std::string what_;
  bool verify_crc_;
  Entries entries_;
  std::string folder_;
};

constexpr unsigned char kOldMagic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
                                       0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

bool is_old_format(std::span<const std::byte> bytes) {
  return bytes.size() >= sizeof kOldMagic &&
         std::equal(std::begin(kOldMagic), std::end(kOldMagic), bytes.begin(),
                    [](unsigned char a, std::byte b) { return std::byte{a} == b; });
}

PickleFile finish(std::span<const std::byte> pickle, std::uint64_t base, std::shared_ptr<void> keep,
                  const std::string& what, const PickleOptions& options,
                  detail::StorageSource source) {
  auto store = std::make_shared<detail::PickleStore>();
  store->what = what;
  store->keep = std::move(keep);
  const auto root = detail::PickleReader{pickle, base, options, std::move(source), *store}.read();
  return {store, PickleValue{store.get(), root}};
}

}  // namespace

PickleFile read_torch_bytes(std::span<std::byte> bytes, std::shared_ptr<void> keep,
                            const std::string& what, const PickleOptions& options) {
  if (is_old_format(bytes)) {
    throw Failure{
        Errc::Unsupported,
        what + ": is in the format of torch.save before PyTorch 1.6; load and save it again there"};
  }
  if (!detail::looks_like_zip(bytes))
    throw Failure{Errc::FileCorrupt,
                  what + ": is no file of torch.save: it does not begin as a zip archive"};
  const TorchArchive archive{bytes, what, options.verify_crc};
  const auto& entry = archive.pickle();
  const auto pickle = archive.checked(entry, "data.pkl");
  return finish(pickle, entry.begin, std::move(keep), what, options,
                [&](std::string_view key) { return archive.storage(key); });
}

PickleFile read_torch_file(const std::filesystem::path& file, const PickleOptions& options) {
  const auto mapped = detail::map_private(file);
  return read_torch_bytes(mapped.bytes, mapped.keep, file.string(), options);
}

PickleFile read_pickle_bytes(std::span<const std::byte> bytes, std::shared_ptr<void> keep,
                             const std::string& what, const PickleOptions& options) {
  return finish(bytes, 0, std::move(keep), what, options, {});
}

}  // namespace troupe
