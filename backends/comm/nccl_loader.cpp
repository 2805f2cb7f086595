#include <troupe/nccl.hpp>

#include <dlfcn.h>

namespace troupe {

std::unique_ptr<NcclPlugin> load_nccl_plugin(const std::filesystem::path& library) {
  void* handle = nullptr;
  if (!library.has_parent_path()) {
    std::error_code ignored;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored);
    handle = dlopen((program.parent_path() / library).c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  if (!handle) handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw Failure{Errc::Unsupported, "the NCCL plug-in cannot be loaded: " + std::string(dlerror())};
  // The library stays loaded: NCCL starts threads that outlive any handle.
  const auto open = reinterpret_cast<OpenNcclPlugin>(dlsym(handle, "troupe_nccl_open"));
  NcclPlugin* plugin = open ? open(kNcclPluginAbi) : nullptr;
  if (!plugin) {
    throw Failure{Errc::Unsupported, library.string() + " is no NCCL plug-in of this version of Troupe; build both together"};
  }
  return std::unique_ptr<NcclPlugin>{plugin};
}

}  // namespace troupe
