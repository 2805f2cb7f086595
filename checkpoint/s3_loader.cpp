#include <troupe/plugin.hpp>
#include <troupe/s3.hpp>

#include <dlfcn.h>

namespace troupe {

std::unique_ptr<ObjectStore> open_s3_store(const StoreUrl& url, const S3Settings& settings, const std::filesystem::path& library) {
  std::string why;
  void* handle = open_plugin(library, why);
  if (!handle) {
    throw Failure{Errc::Unsupported, "storage_path '" + url.text() + "' needs " + library.string() + ", which cannot be loaded: " + why +
                                         ". Build the target troupe_s3, or use a directory"};
  }
  const auto open = reinterpret_cast<OpenS3Store>(dlsym(handle, "troupe_s3_open"));
  ObjectStore* store = open ? open(kS3PluginAbi, url, settings) : nullptr;
  if (!store) {
    throw Failure{Errc::Unsupported, library.string() + " is no S3 plug-in of this version of Troupe; build both together"};
  }
  return std::unique_ptr<ObjectStore>{store};
}

}  // namespace troupe
