#include "checkpoint_commands.hpp"
#include "checkpoint_text.hpp"
#include "elements.hpp"

#include <troupe/errors.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

namespace troupe::tools {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string a, b;
  bool json = false;
};

struct Difference {
  std::string stem, tensor;
  std::string kind;  ///< "removed", "added", "shape", "dtype", "values"
  std::string text;  ///< what it was and is
  double max_abs = 0, relative_l2 = 0;
  bool as_numbers = true;
};

constexpr std::uint64_t chunk_bytes = 8 << 20;  // a multiple of every element's size

/// The values of a tensor that is there on both sides with one shape, a chunk at a time.
struct Values {
  double max_abs = 0, squares_of_difference = 0, squares_of_a = 0;
  bool equal_bytes = true;

  void add(SafetensorsDtype dtype, std::span<const std::byte> a, SafetensorsDtype dtype_b, std::span<const std::byte> b) {
    equal_bytes = equal_bytes && dtype == dtype_b && std::equal(a.begin(), a.end(), b.begin(), b.end());
    decode(dtype, a, left_);
    decode(dtype_b, b, right_);
    for (std::size_t i = 0; i < left_.size(); ++i) {
      squares_of_a += left_[i] * left_[i];
      const bool same = left_[i] == right_[i] || (std::isnan(left_[i]) && std::isnan(right_[i]));
      const double difference = same ? 0 : std::fabs(left_[i] - right_[i]);
      squares_of_difference += difference * difference;
      if (!(difference <= max_abs)) max_abs = std::isnan(difference) || std::isnan(max_abs) ? std::nan("") : difference;
    }
  }

 private:
  std::vector<double> left_, right_;
};

Values compare(const CheckpointReader& a, const CheckpointReader& b, const std::string& stem, const TensorSpec& left, const TensorSpec& right) {
  Values values;
  const auto elements = elements_of(left);
  const auto per_chunk = chunk_bytes / std::max<std::uint64_t>(1, std::max(bits_of(left.dtype), bits_of(right.dtype)) / 8);
  std::vector<std::byte> first, second;
  for (std::uint64_t begin = 0; begin < elements; begin += per_chunk) {
    const auto count = std::min(per_chunk, elements - begin);
    first.resize(count * bits_of(left.dtype) / 8);
    second.resize(count * bits_of(right.dtype) / 8);
    const ReadRange of_a{left.name, begin * bits_of(left.dtype) / 8, first}, of_b{right.name, begin * bits_of(right.dtype) / 8, second};
    a.read(stem, std::span{&of_a, 1});
    b.read(stem, std::span{&of_b, 1});
    values.add(left.dtype, first, right.dtype, second);
  }
  return values;
}

std::map<std::string, TensorSpec> by_name(const CheckpointReader& reader, const std::string& stem) {
  std::map<std::string, TensorSpec> tensors;
  for (auto& tensor : reader.tensors(stem)) tensors.emplace(tensor.name, tensor);
  return tensors;
}

std::string describe(const TensorSpec& tensor) { return std::string(name(tensor.dtype)) + " " + shape_text(tensor.shape); }

struct Comparison {
  std::vector<Difference> differences;
  std::uint64_t equal = 0;

  void tensors(const CheckpointReader& a, const CheckpointReader& b, const std::string& stem) {
    const auto left = by_name(a, stem), right = by_name(b, stem);
    for (const auto& [tensor, spec] : left) {
      const auto other = right.find(tensor);
      if (other == right.end()) {
        differences.push_back({stem, tensor, "removed", describe(spec)});
      } else if (spec.shape != other->second.shape) {
        differences.push_back({stem, tensor, "shape", describe(spec) + " -> " + describe(other->second)});
      } else {
        values(a, b, stem, spec, other->second);
      }
    }
    for (const auto& [tensor, spec] : right) {
      if (!left.contains(tensor)) differences.push_back({stem, tensor, "added", describe(spec)});
    }
  }

  void values(const CheckpointReader& a, const CheckpointReader& b, const std::string& stem, const TensorSpec& left, const TensorSpec& right) {
    const auto found = compare(a, b, stem, left, right);
    if (found.equal_bytes) {
      ++equal;
      return;
    }
    Difference made{stem, left.name, left.dtype == right.dtype ? "values" : "dtype", left.dtype == right.dtype ? describe(left) : describe(left) + " -> " + describe(right)};
    made.as_numbers = is_number(left.dtype) && is_number(right.dtype);
    made.max_abs = found.max_abs;
    made.relative_l2 = found.squares_of_difference == 0 ? 0 : std::sqrt(found.squares_of_difference / found.squares_of_a);
    differences.push_back(std::move(made));
  }
};

std::string number_text(double value) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// What differs beside tensors, a line each.
std::vector<std::string> other_differences(const CheckpointReader& a, const CheckpointReader& b) {
  std::vector<std::string> lines;
  const auto say = [&](const std::string& what, const std::string& left, const std::string& right) {
    if (left != right) lines.push_back(what + ": " + left + " -> " + right);
  };
  if (a.state() && b.state()) {
    say("step", std::to_string(a.state()->step), std::to_string(b.state()->step));
    say("epoch", std::to_string(a.state()->epoch), std::to_string(b.state()->epoch));
    say("ranks", std::to_string(a.state()->world_size), std::to_string(b.state()->world_size));
    say("strategy", a.state()->strategy, b.state()->strategy);
    if (lines.empty() && !(*a.state() == *b.state())) lines.emplace_back("state of training: differs");
  } else if (a.state().has_value() != b.state().has_value()) {
    lines.emplace_back(a.state() ? "state of training: removed" : "state of training: added");
  }
  std::map<std::string, std::pair<const FileRecord*, const FileRecord*>> files;
  for (const auto& file : a.manifest().files) files[file.name].first = &file;
  for (const auto& file : b.manifest().files) files[file.name].second = &file;
  for (const auto& [file, sides] : files) {
    if (file.ends_with(".safetensors") || file.ends_with(".troupe") || file == manifest_json_name || !a.has_manifest() || !b.has_manifest()) continue;
    if (!sides.second) lines.push_back("file " + file + ": removed");
    else if (!sides.first) lines.push_back("file " + file + ": added");
    else if (sides.first->size != sides.second->size || sides.first->digest != sides.second->digest) lines.push_back("file " + file + ": differs");
  }
  return lines;
}

void print(const Comparison& made, const std::vector<std::string>& others) {
  std::vector<std::vector<std::string>> table{{"TENSOR", "WHAT", "MAX ABS", "RELATIVE L2", "TYPE"}};
  for (const auto& one : made.differences) {
    const bool numbers = one.as_numbers && (one.kind == "values" || one.kind == "dtype");
    table.push_back({one.stem + ": " + one.tensor, one.kind, numbers ? number_text(one.max_abs) : "-", numbers ? number_text(one.relative_l2) : "-", one.text});
  }
  if (table.size() > 1) print_table(table);
  for (const auto& line : others) std::printf("%s\n", line.c_str());
  if (made.differences.empty()) {
    std::printf("%s, all equal, byte for byte\n", count_text(made.equal, "tensor").c_str());
  } else {
    std::printf("%s, %llu equal byte for byte\n", count_text(made.differences.size(), "tensor").append(made.differences.size() == 1 ? " differs" : " differ").c_str(),
                static_cast<unsigned long long>(made.equal));
  }
}

int run(const Options& o) {
  const auto a = open_checkpoint(o.a), b = open_checkpoint(o.b);
  std::set<std::string> stems;
  for (const auto* side : {&a, &b}) {
    for (const auto& stem : side->stems()) stems.insert(stem);
  }
  Comparison made;
  for (const auto& stem : stems) made.tensors(a, b, stem);
  const auto others = other_differences(a, b);
  if (o.json) {
    Json list = Json::array();
    for (const auto& one : made.differences) {
      Json line{{"file", one.stem}, {"tensor", one.tensor}, {"kind", one.kind}, {"what", one.text}};
      if (one.as_numbers && (one.kind == "values" || one.kind == "dtype")) line.update({{"max_abs", one.max_abs}, {"relative_l2", one.relative_l2}});
      list.push_back(std::move(line));
    }
    std::puts(Json({{"equal_tensors", made.equal}, {"differences", list}, {"others", others}}).dump(2).c_str());
  } else {
    print(made, others);
  }
  return made.differences.empty() && others.empty() ? 0 : 1;
}

}  // namespace

Command add_diff(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("diff", "Compares two checkpoints tensor by tensor; exit code 1 when they differ");
  command->add_option("A", o.a, "a checkpoint, or a Hugging Face directory")->required();
  command->add_option("B", o.b, "another one")->required();
  command->add_flag("--json", o.json, "as JSON");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
