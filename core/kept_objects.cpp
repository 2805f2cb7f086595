#include <troupe/errors.hpp>
#include <troupe/kept_objects.hpp>

namespace troupe {

std::shared_ptr<void> KeptObjects::get(int rank, const std::string& name, std::type_index type, const Make& make) {
  {
    const std::lock_guard lock{mutex_};
    if (const auto found = kept_.find({rank, name}); found != kept_.end()) {
      if (found->second.type == type) return found->second.object;
      throw Failure{Errc::InvalidArgument, "keep(\"" + name + "\"): what rank " + std::to_string(rank) + " keeps there is of another type"};
    }
  }
  auto object = make();  // it may take long, and other ranks are threads
  const std::lock_guard lock{mutex_};
  return kept_.try_emplace({rank, name}, Kept{type, std::move(object)}).first->second.object;
}

void KeptObjects::clear() {
  decltype(kept_) old;  // ends without the lock
  const std::lock_guard lock{mutex_};
  old.swap(kept_);
}

}  // namespace troupe
