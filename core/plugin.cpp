#include <troupe/plugin.hpp>

#include <dlfcn.h>

namespace troupe {

void* open_plugin(const std::filesystem::path& library, std::string& why) {
  if (!library.has_parent_path()) {
    std::error_code ignored;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
    for (const auto& folder : {program, program.parent_path() / "lib"}) {
      if (!std::filesystem::exists(folder / library, ignored)) continue;
      if (void* handle = dlopen((folder / library).c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    }
  }
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) why = dlerror();
  return handle;
}

}  // namespace troupe
