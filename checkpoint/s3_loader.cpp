#include <troupe/s3.hpp>

#include <dlfcn.h>

namespace troupe {

namespace {

void* open_library(const std::filesystem::path& library) {
  if (!library.has_parent_path()) {
    std::error_code ignored;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
    for (const auto& folder : {program, program.parent_path() / "lib"}) {
      if (!std::filesystem::exists(folder / library, ignored)) continue;
      if (void* handle = dlopen((folder / library).c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    }
  }
  return dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
}

}  // namespace

std::unique_ptr<ObjectStore> open_s3_store(const StoreUrl& url, const S3Settings& settings, const std::filesystem::path& library) {
  // The library stays loaded: its threads outlive any handle.
  void* handle = open_library(library);
  if (!handle) {
    const std::string why = dlerror();
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
