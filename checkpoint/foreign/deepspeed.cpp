#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <troupe/errors.hpp>
#include <troupe/foreign.hpp>
#include <utility>

#include "deepspeed_files.hpp"
#include "flatten.hpp"
#include "tensor_shape.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using detail::DeepSpeedFiles;

constexpr std::size_t kMaxMoments = 16;

/// Flat tensors end to end, taken from the front.
class FlatReader {
 public:
  explicit FlatReader(std::string what) : what_(std::move(what)) {}

  void add(const ForeignTensor& part) {
    if (part.shape.size() != 1 || !part.contiguous())
      throw Failure{Errc::FileCorrupt, what_ + ": a partition is no flat tensor"};
    parts_.push_back(part);
    left_ += part.elements();
  }

  [[nodiscard]] std::uint64_t left() const noexcept { return left_; }

  void take(std::uint64_t count, std::vector<ForeignTensor>& out) {
    if (count > left_)
      throw Failure{Errc::FileCorrupt, what_ + ": the partitions end " +
                                           std::to_string(count - left_) + " elements too early"};
    left_ -= count;
    while (count > 0) {
      auto piece = parts_[next_];
      const auto some = std::min(count, piece.elements() - used_);
      piece.offset += used_ * bytes_of(piece.dtype);
      piece.shape = {static_cast<std::int64_t>(some)};
      if (some > 0) out.push_back(std::move(piece));
      used_ += some;
      count -= some;
      if (used_ == parts_[next_].elements()) {
        ++next_;
        used_ = 0;
      }
    }
  }

  void skip(std::uint64_t count) {
    std::vector<ForeignTensor> dropped;
    take(std::min(count, left_), dropped);
  }

 private:
  std::string what_;
  std::vector<ForeignTensor> parts_;
  std::size_t next_ = 0;
  std::uint64_t used_ = 0;
  std::uint64_t left_ = 0;
};

struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
  std::uint64_t elements = 0;
  std::uint64_t padding = 0;  ///< elements that follow it in the flat vector
};

using Groups = std::vector<std::vector<Parameter>>;

std::vector<std::int64_t> shape_of(const PickleValue& size) {
  std::vector<std::int64_t> out;
  for (std::size_t i = 0; i < size.size(); ++i) out.push_back(size[i].integer());
  return out;
}

std::vector<Parameter> parameters_of(const PickleValue& shapes) {
  std::vector<Parameter> out;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    Parameter parameter{std::string(shapes.key(i).text()), shape_of(shapes.value(i)), 0, 0};
    const auto elements = detail::count_elements(parameter.shape);
    if (!elements) shapes.refuse("parameter '" + parameter.name + "' has an impossible shape");
    parameter.elements = *elements;
    out.push_back(std::move(parameter));
  }
  return out;
}

class DeepSpeedReader {
 public:
  explicit DeepSpeedReader(const fs::path& directory) : files_(detail::open_deepspeed(directory)) {}

  ForeignCheckpoint read() {
    out_.format = ForeignFormat::DeepSpeed;
    out_.found = "a DeepSpeed ZeRO-" + std::to_string(files_.stage) + " checkpoint of " +
                 std::to_string(ranks()) + (ranks() == 1 ? " rank" : " ranks");
    const auto groups = read_groups();
    read_masters(groups);
    read_moments(groups);
    read_frozen();
    read_shared();
    read_module();
    read_counters();
    return std::move(out_);
  }

 private:
  [[nodiscard]] std::size_t ranks() const noexcept { return files_.optimizers.size(); }
  [[nodiscard]] PickleValue model() const { return files_.models.front().root; }
  [[nodiscard]] ForeignTensors& weights() { return out_.sections["model"].tensors; }

  [[nodiscard]] Groups read_groups() const {
    const auto shapes = model().at("param_shapes");
    Groups out;
    for (std::size_t g = 0; g < shapes.size(); ++g) {
      auto group = parameters_of(shapes[g]);
      if (files_.stage == 3 && g > 0) {
        std::ranges::move(group, std::back_inserter(out.front()));
      } else {
        out.push_back(std::move(group));
      }
    }
    read_paddings(out);
    return out;
  }

  void read_paddings(Groups& groups) const {
    const auto paddings = files_.state(0).find("param_alignment_paddings");
    if (files_.stage == 3 || !paddings || paddings->is(PickleKind::None)) return;
    if (paddings->size() != groups.size())
      paddings->refuse("param_alignment_paddings has another number of groups than param_shapes");
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const auto list = (*paddings)[g];
      if (list.size() != groups[g].size())
        list.refuse("param_alignment_paddings has another number of parameters than param_shapes");
      for (std::size_t i = 0; i < groups[g].size(); ++i) {
        const auto padding = list[i].integer();
        if (padding < 0) list.refuse("param_alignment_paddings has a negative number");
        groups[g][i].padding = static_cast<std::uint64_t>(padding);
      }
    }
  }

  /// Flat tensors that a rank has for one key: a number of sub-groups in stage 3, one a group
  /// before.
  using Flats = std::vector<std::vector<ForeignTensor>>;  // [rank][group]

  void read_masters(const Groups& groups) {
    const auto* const key =
        files_.stage == 3 ? "fp32_flat_groups" : "single_partition_of_fp32_groups";
    Flats flats;
    for (std::size_t r = 0; r < ranks(); ++r) {
      const auto list = files_.state(r).at(key);
      flats.emplace_back();
      for (std::size_t g = 0; g < list.size(); ++g) flats.back().push_back(list[g].tensor());
    }
    gather(groups, flats, weights(), "", true);
  }

  /// Every element of the files is used at most once, so what is put together is no larger than
  /// they are.
  void claim(const ForeignTensor& flat, std::size_t rank) {
    const auto* const begin = flat.storage.data() + flat.offset;
    const auto* const end = begin + flat.elements() * bytes_of(flat.dtype);
    if (begin == end) return;
    const auto after = claimed_.upper_bound(begin);
    const bool overlaps = (after != claimed_.end() && after->first < end) ||
                          (after != claimed_.begin() && std::prev(after)->second > begin);
    if (overlaps)
      throw Failure{Errc::FileCorrupt,
                    files_.what(rank) + ": two flat tensors of the optimizer overlap"};
    claimed_.emplace(begin, end);
  }

  /// Adam's moments lie in flat tensors exactly as the masters do.
  void read_moments(const Groups& groups) {
    for (const auto& key : moment_keys()) {
      Flats flats;
      for (std::size_t r = 0; r < ranks(); ++r) {
        flats.emplace_back();
        for (const auto& group : in_order(optimizer_state(r)))
          flats.back().push_back(group.at(key).tensor());
      }
      gather(groups, flats, out_.sections["optimizer"].tensors, key + ".", false);
    }
  }

  [[nodiscard]] PickleValue optimizer_state(std::size_t rank) const {
    const auto base =
        files_.state(rank).at(files_.stage == 3 ? "optimizer_state_dict" : "base_optimizer_state");
    if (!base.is(PickleKind::Dict))
      throw Failure{Errc::Unsupported,
                    files_.what(rank) + ": was saved with elastic_checkpoint, which is not read"};
    return base.at("state");
  }

  /// state is {0: {…}, 1: {…}}, in any order; its values by number.
  [[nodiscard]] static std::vector<PickleValue> in_order(const PickleValue& state) {
    std::map<std::int64_t, PickleValue> by_number;
    for (std::size_t i = 0; i < state.size(); ++i)
      by_number[state.key(i).integer()] = state.value(i);
    std::vector<PickleValue> out;
    for (const auto& [number, value] : by_number) {
      if (number != static_cast<std::int64_t>(out.size()))
        state.refuse("the optimizer's state lacks group " + std::to_string(out.size()));
      out.push_back(value);
    }
    return out;
  }

  [[nodiscard]] std::vector<std::string> moment_keys() const {
    std::vector<std::string> out;
    const auto groups = in_order(optimizer_state(0));
    for (std::size_t i = 0; !groups.empty() && i < groups[0].size(); ++i) {
      const auto value = groups[0].value(i);
      if (value.is(PickleKind::Tensor) && value.tensor().shape.size() == 1)
        out.emplace_back(groups[0].key(i).text());
    }
    if (out.size() > kMaxMoments) groups[0].refuse("has more than 16 flat tensors a parameter");
    return out;
  }

  void gather(const Groups& groups, const Flats& flats, ForeignTensors& out,
              const std::string& prefix, bool masters) {
    for (std::size_t r = 1; r < flats.size(); ++r) {
      if (flats[r].size() != flats[0].size())
        throw Failure{Errc::FileCorrupt,
                      files_.what(r) + ": has another number of parameter groups than rank 0"};
    }
    for (std::size_t r = 0; r < flats.size(); ++r) {
      for (const auto& flat : flats[r]) claim(flat, r);
    }
    if (files_.stage == 3) return gather_interleaved(groups, flats, out, prefix, masters);
    if (flats[0].size() != groups.size())
      throw Failure{Errc::FileCorrupt, files_.what(0) + ": has " + std::to_string(flats[0].size()) +
                                           " parameter groups, param_shapes has " +
                                           std::to_string(groups.size())};
    for (std::size_t g = 0; g < groups.size(); ++g) {
      FlatReader flat{files_.what(0) + ": parameter group " + std::to_string(g)};
      for (std::size_t r = 0; r < ranks(); ++r) flat.add(flats[r][g]);
      const auto all = flat.left();
      for (const auto& parameter : groups[g]) {
        std::vector<ForeignTensor> parts;
        flat.take(parameter.elements, parts);
        put(out, prefix, parameter, parts);
        flat.skip(parameter.padding);
      }
      // As zero_to_fp32 judges it: alignment to twice the ranks may remain.
      const auto aligned = [&](std::uint64_t n) { return (n + 2 * ranks() - 1) / (2 * ranks()); };
      if (masters && aligned(all - flat.left()) != aligned(all))
        throw Failure{Errc::FileCorrupt, files_.what(0) + ": parameter group " + std::to_string(g) +
                                             " has " + std::to_string(flat.left()) +
                                             " elements more than param_shapes says"};
    }
  }

  /// Stage 3: every parameter is cut into equal parts, one a rank, the last one padded.
  void gather_interleaved(const Groups& groups, const Flats& flats, ForeignTensors& out,
                          const std::string& prefix, bool masters) {
    std::vector<FlatReader> readers;
    for (std::size_t r = 0; r < ranks(); ++r) {
      readers.emplace_back(files_.what(r));
      for (const auto& part : flats[r]) readers.back().add(part);
    }
    for (const auto& group : groups) {
      for (const auto& parameter : group) {
        const auto part = (parameter.elements + ranks() - 1) / ranks();
        std::vector<ForeignTensor> parts;
        auto left = parameter.elements;
        for (auto& reader : readers) {
          const auto mine = std::min(part, left);
          reader.take(mine, parts);
          reader.skip(part - mine);
          left -= mine;
        }
        put(out, prefix, parameter, parts);
      }
    }
    for (std::size_t r = 0; r < ranks() && masters; ++r) {
      if (readers[r].left() != 0)
        throw Failure{Errc::FileCorrupt, files_.what(r) + ": has " +
                                             std::to_string(readers[r].left()) +
                                             " elements more than param_shapes says"};
    }
  }

  void put(ForeignTensors& out, const std::string& prefix, const Parameter& parameter,
           const std::vector<ForeignTensor>& parts) {
    auto tensor =
        joined(parts, parameter.shape, files_.what(0) + ": parameter '" + parameter.name + "'");
    if (!out.emplace(prefix + parameter.name, std::move(tensor)).second)
      throw Failure{Errc::FileCorrupt,
                    files_.what(0) + ": parameter '" + parameter.name + "' is there twice"};
  }

  void read_frozen() {
    const auto shapes = model().find("frozen_param_shapes");
    if (!shapes || !shapes->is(PickleKind::Dict)) return;
    std::vector<std::map<std::string_view, PickleValue>> fragments;
    for (const auto& file : files_.models)
      fragments.push_back(detail::members_of(file.root.at("frozen_param_fragments")));
    for (const auto& parameter : parameters_of(*shapes)) {
      std::vector<ForeignTensor> parts;
      auto left = parameter.elements;
      for (const auto& by_name : fragments) {
        const auto found = by_name.find(parameter.name);
        if (found == by_name.end())
          shapes->refuse("frozen_param_fragments lacks '" + parameter.name + "'");
        const auto fragment = found->second.tensor();
        FlatReader flat{files_.what(0) + ": frozen parameter '" + parameter.name + "'"};
        flat.add(joined({fragment}, {static_cast<std::int64_t>(fragment.elements())},
                        "a frozen parameter"));
        const auto mine = std::min(left, flat.left());
        flat.take(mine, parts);
        left -= mine;
      }
      put(weights(), "", parameter, parts);
    }
  }

  /// What has no master: buffers, and in stages 1 and 2, where the module is whole, frozen
  /// parameters.
  void read_module() {
    const auto module = detail::members_of(model().at("module"));
    std::set<std::string_view> buffers;
    const auto names = model().at("buffer_names");
    for (std::size_t i = 0; i < names.size(); ++i) buffers.insert(names[i].text());
    for (const auto& [name, value] : module) {
      if (value.is(PickleKind::Tensor) && (files_.stage < 3 || buffers.contains(name)))
        weights().emplace(name, value.tensor());
    }
  }

  /// {alias: name}
  void read_shared() {
    const auto shared = model().find("shared_params");
    if (!shared || !shared->is(PickleKind::Dict)) return;
    for (std::size_t i = 0; i < shared->size(); ++i) {
      const auto found = weights().find(std::string(shared->value(i).text()));
      if (found != weights().end()) weights().emplace(shared->key(i).text(), found->second);
    }
  }

  void read_counters() {
    auto& values = out_.sections["training"].values;
    for (const auto* const key :
         {"global_steps", "global_samples", "skipped_steps", "dp_world_size", "ds_version"}) {
      if (const auto value = model().find(key))
        detail::flatten(*value, key, out_.sections["training"]);
    }
    const auto base =
        files_.state(0).at(files_.stage == 3 ? "optimizer_state_dict" : "base_optimizer_state");
    if (const auto groups = base.find("param_groups"))
      detail::flatten(*groups, "param_groups", out_.sections["optimizer"]);
    if (const auto states = in_order(optimizer_state(0)); !states.empty()) {
      if (const auto step = states[0].find("step"))
        detail::flatten(*step, "step", out_.sections["optimizer"]);
    }
    if (const auto scheduler = model().find("lr_scheduler"))
      detail::flatten(*scheduler, "", out_.sections["scheduler"]);
    values.emplace("zero_stage", std::int64_t{files_.stage});
  }

  DeepSpeedFiles files_;
  ForeignCheckpoint out_;
  std::map<const std::byte*, const std::byte*> claimed_;  ///< begin → end
};

}  // namespace

ForeignCheckpoint read_deepspeed(const fs::path& directory) {
  return DeepSpeedReader{directory}.read();
}

}  // namespace troupe
