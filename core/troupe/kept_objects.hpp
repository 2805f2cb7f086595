#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <typeindex>
#include <utility>

namespace troupe {

/// What ranks of this process keep from one attempt of a run to the next. Threads: any.
class KeptObjects {
 public:
  using Make = std::function<std::shared_ptr<void>()>;
  /// The object that rank `rank` keeps under `name`; made first when there is none. What `make` throws goes through.
  /// Throws Failure{InvalidArgument} when it is of another type.
  [[nodiscard]] std::shared_ptr<void> get(int rank, const std::string& name, std::type_index type, const Make& make);
  /// Nobody may hold one of them but through the shared pointer.
  void clear();

 private:
  struct Kept {
    std::type_index type;
    std::shared_ptr<void> object;
  };
  std::mutex mutex_;
  std::map<std::pair<int, std::string>, Kept> kept_;
};

}  // namespace troupe
