#include "accelerator_impl.hpp"

#include <troupe/errors.hpp>
#include <troupe/tensor_files.hpp>

#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>

#include <fstream>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sstream>

namespace troupe {

namespace {

using Json = nlohmann::ordered_json;
using detail::NamedTensors;
constexpr int state_version = 1;

/// "model.safetensors", "model_1.safetensors", … as Accelerate names them.
std::string numbered(const std::string& stem, std::size_t i) {
  return stem + (i ? "_" + std::to_string(i) : "") + ".safetensors";
}

std::filesystem::path random_file(const std::filesystem::path& directory, int rank) {
  return directory / ("random_state_" + std::to_string(rank) + ".safetensors");
}

void write_json(const std::filesystem::path& file, const Json& json) {
  auto temporary = file;
  temporary += ".tmp";
  std::ofstream out{temporary};
  out << json.dump(1) << "\n";
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(temporary, file, error);
  if (!out || error) throw Failure{Errc::StorageUnavailable, file.string() + ": cannot be written" + (error ? ": " + error.message() : "")};
}

Json read_json(const std::filesystem::path& file) {
  std::ifstream in{file};
  if (!in) throw Failure{Errc::FileNotFound, file.string() + ": not found; is this a directory that save_state wrote?"};
  auto json = Json::parse(in, nullptr, false);
  if (json.is_discarded()) throw Failure{Errc::FileCorrupt, file.string() + ": is no JSON"};
  if (json.value("version", 0) != state_version) {
    throw Failure{Errc::FileCorrupt, file.string() + ": has version " + std::to_string(json.value("version", 0)) + ", this program reads " +
                                         std::to_string(state_version)};
  }
  return json;
}

/// The list `key`, which must have as many entries as were prepared.
const Json& list_of(const std::filesystem::path& file, const Json& json, const char* key, std::size_t prepared) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_array()) throw Failure{Errc::FileCorrupt, file.string() + ": has no list \"" + key + "\""};
  if (found->size() != prepared) {
    throw Failure{Errc::InvalidArgument, file.string() + ": holds " + std::to_string(found->size()) + " " + key + ", but " +
                                             std::to_string(prepared) + " were prepared"};
  }
  return *found;
}

void save_generator(const std::filesystem::path& file) {
  auto& generator = rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  write_safetensors(file, {{"rank_generator", generator.get_state()}});
}

void load_generator(const std::filesystem::path& file) {
  const auto tensors = read_safetensors(file);
  const auto found = tensors.find("rank_generator");
  if (found == tensors.end()) throw Failure{Errc::FileCorrupt, file.string() + ": has no tensor rank_generator"};
  auto& generator = rank_generator();
  const std::scoped_lock lock{generator.mutex()};
  generator.set_state(found->second.clone());
}

}  // namespace

void Accelerator::write_state(const std::filesystem::path& directory) {
  auto& i = *impl_;
  if (!i.gate->sync) {
    throw Failure{Errc::InvalidArgument, "save_state: an accumulation window is open, and gradients are not saved; call it after an update"};
  }
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw Failure{Errc::StorageUnavailable, directory.string() + ": cannot be made: " + error.message()};
  save_generator(random_file(directory, process_index()));
  // Gathering what is sharded takes everyone; the main process writes.
  std::vector<NamedTensors> models, states;
  for (const auto& model : i.models) models.push_back(get_state_dict(*model.module));
  for (const auto* optimizer : i.optimizers) states.push_back(i.whole_state(*optimizer));
  if (!is_main_process()) return;
  for (std::size_t m = 0; m < models.size(); ++m) write_safetensors(directory / numbered("model", m), models[m]);
  Json json{{"version", state_version}, {"world_size", num_processes()}};
  auto& optimizers = json["optimizers"] = Json::array();
  for (std::size_t o = 0; o < i.optimizers.size(); ++o) {
    write_safetensors(directory / numbered("optimizer", o), states[o]);
    auto& lrs = optimizers.emplace_back(Json{{"lr", Json::array()}})["lr"];
    for (const auto& group : i.optimizers[o]->groups()) lrs.push_back(group.lr);
  }
  auto& schedulers = json["schedulers"] = Json::array();
  for (const auto* scheduler : i.schedulers) schedulers.push_back({{"last_step", scheduler->last_step()}});
  json["loaders"] = i.loader_state();
  const auto& scaler = i.scaler.state();
  json["loss_scaler"] = {{"scale", scaler.scale}, {"good_steps", scaler.good_steps}, {"hysteresis", scaler.hysteresis}};
  write_json(directory / "state.json", json);
}

void Accelerator::save_state(const std::filesystem::path& directory) {
  write_state(directory);
  wait_for_everyone();
}

Checkpoint Accelerator::checkpoint() {
  const auto directory = impl_->context.checkpoint_dir();
  write_state(directory);
  return Checkpoint{directory, num_processes()};
}

void Accelerator::load_state(const std::filesystem::path& directory) {
  auto& i = *impl_;
  const auto file = directory / "state.json";
  const auto json = read_json(file);
  const auto& optimizers = list_of(file, json, "optimizers", i.optimizers.size());
  const auto& schedulers = list_of(file, json, "schedulers", i.schedulers.size());
  const auto& loaders = list_of(file, json, "loaders", i.loaders.size());
  for (std::size_t m = 0; m < i.models.size(); ++m) i.load_model(directory / numbered("model", m), i.models[m]);
  for (std::size_t s = 0; s < i.schedulers.size(); ++s) i.schedulers[s]->set_step(schedulers[s].at("last_step").get<std::int64_t>());
  for (std::size_t o = 0; o < i.optimizers.size(); ++o) {
    const auto tensors = read_safetensors(directory / numbered("optimizer", o));
    i.optimizers[o]->load_state(i.local_state(*i.optimizers[o], {tensors.begin(), tensors.end()}));
    const auto& lrs = list_of(file, optimizers[o], "lr", i.optimizers[o]->groups().size());
    for (std::size_t g = 0; g < lrs.size(); ++g) i.optimizers[o]->set_lr(g, lrs[g].get<double>());
  }
  i.load_loader_state(loaders);
  if (i.options.mixed_precision == Precision::FP16 && json.contains("loss_scaler")) {
    const auto& scaler = json["loss_scaler"];
    i.scaler.set_state({scaler.at("scale").get<double>(), scaler.at("good_steps").get<std::int64_t>(), scaler.at("hysteresis").get<int>()});
  }
  i.gate->sync = true;
  if (json.value("world_size", 0) == num_processes()) {
    load_generator(random_file(directory, process_index()));
  } else if (is_main_process()) {
    std::cerr << "load_state: saved by " << json.value("world_size", 0) << " ranks, loaded by " << num_processes()
              << ": random generators go on from their seeds\n";
  }
}

}  // namespace troupe
