#pragma once

#include <filesystem>
#include <string>

namespace troupe {

/// Loads a library that programs do not link: from the program's folder, its ../lib, or where the dynamic loader finds it. It stays
/// loaded: its threads outlive any handle. Returns dlopen's handle, or nullptr and the loader's reason in `why`.
[[nodiscard]] void* open_plugin(const std::filesystem::path& library, std::string& why);

}  // namespace troupe
