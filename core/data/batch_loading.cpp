#include "batch_loading.hpp"

#include <ATen/ops/stack.h>

#include <sstream>
#include <string>
#include <troupe/errors.hpp>
#include <utility>

namespace troupe {
namespace {

std::string list(const std::vector<std::int64_t>& indices) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < indices.size() && i < kShown; ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(indices[i]);
  return indices.size() > kShown ? text + ", … (" + std::to_string(indices.size()) + ")" : text;
}

std::string describe(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.scalar_type() << tensor.sizes();
  return text.str();
}

/// Runs `work`; an exception leaves as a Failure whose text begins with `where()`.
template <class Work, class Where>
auto with_place(Work&& work, Where&& where) {
  try {
    return work();
  } catch (const Failure& failure) {
    throw Failure{failure.code(), where() + ": " + failure.what()};
  } catch (const std::exception& error) {
    throw Failure{Errc::DataMalformed, where() + ": " + error.what()};
  } catch (...) {
    throw Failure{Errc::DataMalformed,
                  where() + ": something that is no std::exception was thrown"};
  }
}

/// The tensors called `name` of all samples, each checked against the first.
std::vector<at::Tensor> column(const std::vector<TensorDict>& samples, const std::string& name) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(samples.size());
  for (std::size_t s = 0; s < samples.size(); ++s) {
    const auto* tensor = samples[s].find(name);
    const auto fail = [&](const std::string& text) {
      throw Failure{Errc::DataMalformed, "number " + std::to_string(s) + " of the batch has " +
                                             text +
                                             "; give the loader a collate function that pads"};
    };
    if (!tensor || samples[s].size() != samples[0].size())
      fail("other tensors than number 0 (which has '" + name + "')");
    if (!tensors.empty() && (tensor->sizes() != tensors[0].sizes() ||
                             tensor->scalar_type() != tensors[0].scalar_type())) {
      fail("'" + name + "' of " + describe(*tensor) + ", number 0 of " + describe(tensors[0]));
    }
    tensors.push_back(*tensor);
  }
  return tensors;
}

}  // namespace

Batch default_collate(std::vector<TensorDict> samples) {
  Batch batch;
  if (samples.empty()) return batch;
  for (const auto& [name, first] : samples[0]) batch.set(name, at::stack(column(samples, name)));
  return batch;
}

std::vector<TensorDict> MapDataset::get_items(std::span<const std::int64_t> indices) const {
  std::vector<TensorDict> samples;
  samples.reserve(indices.size());
  for (const auto index : indices) {
    samples.push_back(with_place([&] { return get(static_cast<std::size_t>(index)); },
                                 [&] { return "sample " + std::to_string(index); }));
  }
  return samples;
}

std::int64_t IterableDataset::Pass::skip(std::int64_t count) {
  std::int64_t skipped = 0;
  while (skipped < count && next()) ++skipped;
  return skipped;
}

MakeBatch batch_maker(std::shared_ptr<const MapDataset> dataset, Collate collate, bool batching) {
  return [dataset = std::move(dataset), collate = std::move(collate), batching](BatchJob job) {
    auto& indices = job.meta.indices;
    auto samples = dataset ? dataset->get_items(indices) : std::move(job.samples);
    if (dataset && samples.size() != indices.size()) {
      throw Failure{Errc::DataMalformed, "samples " + list(indices) + ": get_items gave " +
                                             std::to_string(samples.size()) + " of them"};
    }
    LoadedBatch loaded{std::move(job.meta), {}};
    if (batching) {
      loaded.batch = with_place([&] { return collate(std::move(samples)); },
                                [&] { return "collating samples " + list(loaded.meta.indices); });
    } else {
      loaded.batch = std::move(samples.front());
    }
    return loaded;
  };
}

std::optional<TensorDict> read_sample(IterableDataset::Pass& pass, std::int64_t number) {
  return with_place([&] { return pass.next(); },
                    [&] { return "sample " + std::to_string(number); });
}

}  // namespace troupe
