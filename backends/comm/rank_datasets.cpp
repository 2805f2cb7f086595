#include <troupe/rank_datasets.hpp>

namespace troupe {

const DatasetFunction& RankDatasets::function(const std::string& name) const {
  if (const auto found = functions_.find(name); found != functions_.end()) return found->second;
  std::vector<std::string> names;
  std::string list;
  for (const auto& [known, make] : functions_) {
    names.push_back(known);
    list += (list.empty() ? "" : ", ") + known;
  }
  const auto nearest = nearest_name(name, names);
  throw Failure{Errc::NotFound, "dataset(\"" + name + "\"): " +
                                    (names.empty()     ? "this program lists no data sets; name them where main makes its Session"
                                     : nearest.empty() ? "this program lists: " + list
                                                       : "did you mean '" + nearest + "'?")};
}

std::shared_ptr<TrainingStream> RankDatasets::find(const std::string& name) const {
  const auto found = streams_.find(name);
  return found == streams_.end() ? nullptr : found->second;
}

void RankDatasets::add(const std::string& name, std::shared_ptr<TrainingStream> stream) {
  streams_[name] = stream;
  if (opened_) opened_(stream);
}

}  // namespace troupe
