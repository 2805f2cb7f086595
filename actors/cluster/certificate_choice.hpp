#pragma once

#include <troupe/cluster_security.hpp>

#include <filesystem>
#include <string>

namespace troupe::detail {

/// How a command or a launched program shows who it is: by the certificate `wanted` of `directory`; without one by the only certificate of its role there,
/// of several by the one named after this host. `otherwise` where there are no certificates (no directory, or only a token).
/// Throws Failure{InvalidConfig} naming those to choose from, Failure{NotFound} when there is none.
[[nodiscard]] ClusterSecurity choose_certificate(const std::filesystem::path& directory, ClusterRole role, const std::string& wanted, const std::string& otherwise, bool insecure);

}  // namespace troupe::detail
