#include <troupe/accelerate_config.hpp>

#include "precision.hpp"
#include "section.hpp"

#include <troupe/errors.hpp>

#include <algorithm>

namespace troupe {

namespace fs = std::filesystem;

namespace {

using detail::Document;
using detail::KeyRule;
using detail::Section;
using enum detail::Fate;

constexpr std::string_view one_machine = "start ranks on other machines with Troupe's own node agent, not from this file";

constexpr KeyRule top[] = {
    {"distributed_type"}, {"mixed_precision"}, {"num_processes"}, {"num_machines"}, {"use_cpu"}, {"debug"}, {"enable_cpu_affinity"},
    {"deepspeed_config"}, {"fsdp_config"}, {"parallelism_config"}, {"dynamo_config"}, {"fp8_config"},
    {"machine_rank"}, {"main_process_ip"}, {"main_process_port"}, {"rdzv_backend"}, {"same_network"},
    {"compute_environment", Default, "write LOCAL_MACHINE", R"(["LOCAL_MACHINE"])"},
    {"gpu_ids", Default, "write all, and choose GPUs with CUDA_VISIBLE_DEVICES", R"(["all"])"},
    {"downcast_bf16", Default, "there are no TPUs; remove it", R"(["no", false])"},
    {"main_training_function", Default, "name the train function in TorchTrainer", R"(["main"])"},
    {"fp16", Default, "write 'mixed_precision: fp16'", "[false]"},
    {"dynamo_backend", Default, "C++ models are compiled already; remove it", R"(["NO", "no", false])"},
    {"megatron_lm_config", Default, "there is no Megatron-LM; use FSDP or DEEPSPEED", "[{}]"},
    {"mpirun_config", Default, one_machine, "[{}]"},
    {"tpu_name", Default, "there are no TPUs; remove it", "[]"},
    {"tpu_zone", Default, "there are no TPUs; remove it", "[]"},
    {"tpu_use_cluster", Default, "there are no TPUs; remove it", "[false]"},
    {"tpu_use_sudo", Default, "there are no TPUs; remove it", "[false]"},
    {"command_file", Default, "there are no TPUs; remove it", "[]"},
    {"commands", Default, "there are no TPUs; remove it", "[[]]"},
    {"tpu_vm", Default, "there are no TPUs; remove it", "[[]]"},
    {"tpu_env", Default, "there are no TPUs; remove it", "[[]]"},
};

constexpr std::string_view dynamo_text = "C++ models are compiled already; remove it";
constexpr KeyRule dynamo[] = {
    {"dynamo_backend", Default, dynamo_text, R"(["NO", "no", false])"},
    {"dynamo_mode"}, {"dynamo_use_fullgraph"}, {"dynamo_use_dynamic"}, {"dynamo_use_regional_compilation"}};
constexpr KeyRule fp8[] = {{"backend"}, {"fp8_format"}, {"margin"}, {"interval"}, {"amax_history_len"}, {"amax_compute_algo"},
                           {"override_linear_precision"}, {"use_autocast_during_eval"}, {"opt_level"}, {"use_mxfp8_block_scaling"},
                           {"pad_inner_dim"}, {"enable_fsdp_float8_all_gather"}, {"amax_history_length"}, {"amax_compute_algorithm"},
                           {"optimization_level"}};

constexpr KeyRule deepspeed[] = {
    {"deepspeed_config_file"}, {"zero_stage"}, {"gradient_accumulation_steps"}, {"gradient_clipping"},
    {"offload_optimizer_device"}, {"offload_param_device"}, {"offload_optimizer_nvme_path"}, {"offload_param_nvme_path"},
    {"zero3_init_flag"}, {"zero3_save_16bit_model"},
    {"deepspeed_multinode_launcher", Default, one_machine, R"(["standard", "pdsh", "openmpi", "mvapich", "mpich", "nossh", "slurm"])"},
    {"deepspeed_hostfile", Default, one_machine, "[]"},
    {"deepspeed_exclusion_filter", Default, one_machine, "[]"},
    {"deepspeed_inclusion_filter", Default, one_machine, "[]"},
    {"deepspeed_moe_layer_cls_names", Default, "make that class a unit with TROUPE_UNIT", "[]"},
};

constexpr KeyRule fsdp[] = {
    {"fsdp_version"}, {"fsdp_sharding_strategy"}, {"fsdp_reshard_after_forward"}, {"fsdp_offload_params"}, {"fsdp_auto_wrap_policy"},
    {"fsdp_transformer_layer_cls_to_wrap"}, {"fsdp_min_num_params"}, {"fsdp_backward_prefetch"}, {"fsdp_forward_prefetch"},
    {"fsdp_state_dict_type"}, {"fsdp_use_orig_params"}, {"fsdp_cpu_ram_efficient_loading"}, {"fsdp_sync_module_states"},
    {"fsdp_activation_checkpointing"}, {"fsdp_activation_checkpointing_offload"},
    {"fsdp_ignored_modules", Default, "every parameter is sharded; freeze those that should not train", "[]"},
};

constexpr KeyRule parallelism[] = {
    {"parallelism_config_dp_replicate_size"}, {"parallelism_config_dp_shard_size"},
    {"parallelism_config_tp_size", Default, "there is no tensor parallelism", "[1]"},
    {"parallelism_config_cp_size", Default, "there is no context parallelism", "[1]"},
    {"parallelism_config_sp_size", Default, "there is no sequence parallelism", "[1]"},
    {"parallelism_config_cp_backend"}, {"parallelism_config_cp_comm_strategy"}, {"parallelism_config_sp_backend"}};

/// accelerate's launcher adds "fsdp_" where it is missing.
void add_prefixes(Document& document) {
  const auto found = document.root.find("fsdp_config");
  if (found == document.root.end() || !found->is_object()) return;
  auto renamed = nlohmann::ordered_json::object();
  for (const auto& [key, value] : found->items()) {
    const auto full = key.starts_with("fsdp_") ? key : "fsdp_" + key;
    if (renamed.contains(full)) document.fail("fsdp_config." + key, "is given twice, with and without 'fsdp_'; keep one");
    renamed[full] = value;
    if (full != key) {
      document.origins["fsdp_config." + full] = document.origin("fsdp_config." + key);
      document.lines["fsdp_config." + full] = document.lines["fsdp_config." + key];
    }
  }
  *found = std::move(renamed);
}

/// Reads one YAML document. One use.
class AccelerateReader {
 public:
  explicit AccelerateReader(Document document) : document_(std::move(document)), root_((add_prefixes(document_), document_), "", read_) {}

  AccelerateConfig read() {
    made_.file = document_.name;
    check("", top);
    check("dynamo_config", dynamo);
    check("fp8_config", fp8);
    check("deepspeed_config", deepspeed);
    check("fsdp_config", fsdp);
    check("parallelism_config", parallelism);
    general();
    const bool by_file = root_.has("deepspeed_config") && root_.section("deepspeed_config").has("deepspeed_config_file");
    precision(by_file);
    plugin_section("deepspeed_config", "DEEPSPEED");
    plugin_section("fsdp_config", "FSDP");
    if (made_.distributed_type == "DEEPSPEED") read_deepspeed(root_.section("deepspeed_config"));
    if (made_.distributed_type == "FSDP") read_fsdp(root_.section("fsdp_config"));
    read_parallelism(root_.section("parallelism_config"));
    return std::move(made_);
  }

 private:
  template <std::size_t Count>
  void check(const std::string& path, const KeyRule (&rules)[Count]) {
    detail::check_keys(document_, path, rules, made_.notes);
  }

  void general() {
    const auto type = root_.choice("distributed_type", {"NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP"});
    if (!type) root_.fail("distributed_type", "is missing; write one of NO, MULTI_CPU, MULTI_GPU, DEEPSPEED, FSDP");
    made_.distributed_type = *type;
    origin("strategy", "distributed_type");
    if (const auto count = root_.integer("num_processes", -1, 4096); count && *count != -1) {
      if (*count == 0) root_.fail("num_processes", "must be at least 1");
      made_.num_processes = static_cast<int>(*count);
      origin("num_processes", "num_processes");
    } else if (*type == "NO") {
      made_.num_processes = 1;
      origin("num_processes", "distributed_type");
    }
    if (*type == "NO" && made_.num_processes != 1) root_.fail("num_processes", "must be 1 with distributed_type NO");
    made_.num_machines = static_cast<int>(root_.integer("num_machines", 1, 4096).value_or(1));
    if (const auto rank = root_.integer("machine_rank", 0, made_.num_machines - 1)) made_.machine_rank = static_cast<int>(*rank);
    made_.main_process_ip = root_.text("main_process_ip");
    if (const auto port = root_.integer("main_process_port", 0, 65535)) made_.main_process_port = static_cast<int>(*port);
    (void)root_.text("rdzv_backend");
    (void)root_.boolean("same_network");
    made_.use_cpu = root_.boolean("use_cpu").value_or(false);
    made_.debug = root_.boolean("debug").value_or(false);
    origin("debug", "debug");
    made_.enable_cpu_affinity = root_.boolean("enable_cpu_affinity").value_or(false);
  }

  void precision(bool by_file) {
    if (by_file && root_.has("mixed_precision")) {
      root_.fail("mixed_precision", "must not stand beside deepspeed_config.deepspeed_config_file, which says it; remove it");
    }
    made_.mixed_precision = root_.choice("mixed_precision", {"no", "fp16", "bf16", "fp8"});
    if (made_.mixed_precision == "fp8") root_.fail("mixed_precision", "cannot be fp8 here; write bf16");
    if (made_.mixed_precision) origin("mixed_precision", "mixed_precision");
    const auto section = root_.section("fp8_config");
    if (root_.has("fp8_config") && !document_.root["fp8_config"].empty()) {
      made_.notes.push_back(root_.origin("fp8_config") + ": has no effect without mixed_precision fp8, which there is not");
    }
  }

  void plugin_section(const std::string& key, const std::string& type) {
    if (!root_.has(key) || made_.distributed_type == type || document_.root[key].empty()) return;
    root_.fail(key, "has an effect only with distributed_type " + type + ", not " + made_.distributed_type + "; remove it");
  }

  void read_deepspeed(const Section& section) {
    DeepSpeedPlugin plugin;
    if (const auto file = section.text("deepspeed_config_file")) {
      for (const char* key : {"gradient_accumulation_steps", "gradient_clipping", "zero_stage", "offload_optimizer_device",
                              "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path", "zero3_save_16bit_model"}) {
        if (section.has(key)) section.fail(key, "must not stand beside deepspeed_config_file, which says it; remove it");
      }
      fs::path path{*file};
      if (!fs::exists(path) && path.is_relative()) path = fs::path{document_.name}.parent_path() / path;
      if (!fs::exists(path)) section.fail("deepspeed_config_file", "there is no file " + *file + ", from here or beside " + document_.name);
      plugin = DeepSpeedPlugin::from_json(path.string());
    } else {
      if (const auto stage = section.integer("zero_stage", 0, 3)) plugin.zero_stage = static_cast<int>(*stage);
      if (const auto steps = section.integer("gradient_accumulation_steps", 1, 1'000'000)) {
        plugin.gradient_accumulation_steps = static_cast<int>(*steps);
      }
      if (!section.is_auto("gradient_clipping")) plugin.gradient_clipping = section.number("gradient_clipping");
      plugin.offload_optimizer_device = section.choice("offload_optimizer_device", {"none", "cpu", "nvme"});
      plugin.offload_param_device = section.choice("offload_param_device", {"none", "cpu", "nvme"});
      plugin.offload_optimizer_nvme_path = section.text("offload_optimizer_nvme_path");
      plugin.offload_param_nvme_path = section.text("offload_param_nvme_path");
      plugin.zero3_save_16bit_model = section.boolean("zero3_save_16bit_model");
    }
    plugin.zero3_init_flag = section.boolean("zero3_init_flag");
    for (const auto& rule : deepspeed) plugin.origins[std::string{rule.key}] = section.origin(std::string{rule.key});
    made_.deepspeed_plugin = std::move(plugin);
    (void)made_.deepspeed_plugin->resolve({.partial = true});
  }

  void read_fsdp(const Section& section) {
    FullyShardedDataParallelPlugin plugin;
    plugin.fsdp_version = static_cast<int>(section.integer("fsdp_version", 1, 2).value_or(1));
    plugin.sharding_strategy = word_or_number(section, "fsdp_sharding_strategy");
    if (section.has("fsdp_reshard_after_forward")) {
      if (document_.root["fsdp_config"]["fsdp_reshard_after_forward"].is_boolean() || plugin.fsdp_version == 2) {
        plugin.reshard_after_forward = *section.boolean("fsdp_reshard_after_forward");
      } else {
        plugin.reshard_after_forward = *word_or_number(section, "fsdp_reshard_after_forward");
      }
    }
    plugin.cpu_offload.offload_params = section.boolean("fsdp_offload_params").value_or(false);
    plugin.auto_wrap_policy = section.text("fsdp_auto_wrap_policy");
    plugin.transformer_cls_names_to_wrap = section.words("fsdp_transformer_layer_cls_to_wrap").value_or(std::vector<std::string>{});
    plugin.min_num_params = section.integer("fsdp_min_num_params", 0);
    plugin.backward_prefetch = section.text("fsdp_backward_prefetch");
    plugin.forward_prefetch = section.boolean("fsdp_forward_prefetch");
    plugin.state_dict_type = section.text("fsdp_state_dict_type");
    plugin.use_orig_params = section.boolean("fsdp_use_orig_params");
    plugin.cpu_ram_efficient_loading = section.boolean("fsdp_cpu_ram_efficient_loading");
    plugin.sync_module_states = section.boolean("fsdp_sync_module_states");
    plugin.activation_checkpointing = section.boolean("fsdp_activation_checkpointing").value_or(false);
    plugin.activation_checkpointing_offload = section.boolean("fsdp_activation_checkpointing_offload").value_or(false);
    for (const auto& rule : fsdp) {
      const std::string key{rule.key};
      auto field = key == "fsdp_version" ? key : key.substr(5);
      if (field == "offload_params") field = "cpu_offload";
      if (field == "transformer_layer_cls_to_wrap") field = "transformer_cls_names_to_wrap";
      if (section.has(key)) plugin.origins[field] = section.origin(key);
    }
    made_.fsdp_plugin = std::move(plugin);
  }

  /// "FULL_SHARD" or 1.
  std::optional<std::string> word_or_number(const Section& section, const std::string& key) {
    if (section.has(key) && document_.root["fsdp_config"][key].is_number()) return std::to_string(*section.integer(key, 1, 5));
    return section.text(key);
  }

  void read_parallelism(const Section& section) {
    const std::string shard_key = "parallelism_config_dp_shard_size";
    const std::string copies_key = "parallelism_config_dp_replicate_size";
    const auto shard = section.integer(shard_key, 1, 4096);
    const auto copies = section.integer(copies_key, 1, 4096);
    if (!shard && !copies) return;
    if (!made_.fsdp_plugin || made_.fsdp_plugin->fsdp_version != 2) {
      root_.fail("parallelism_config", "has an effect only with distributed_type FSDP and fsdp_version 2; remove it");
    }
    if (shard.value_or(1) == 1) {
      section.fail(section.has(shard_key) ? shard_key : copies_key, "leaves nothing sharded; write dp_shard_size, or distributed_type MULTI_GPU");
    }
    const auto ranks = *shard * copies.value_or(1);
    if (made_.num_processes && ranks != *made_.num_processes) {
      section.fail(shard_key, std::to_string(*shard) + " x dp_replicate_size " + std::to_string(copies.value_or(1)) +
                                  " is not num_processes " + std::to_string(*made_.num_processes));
    }
    if (copies.value_or(1) == 1) return;
    made_.fsdp_plugin->shard_group_size = static_cast<int>(*shard);
    made_.fsdp_plugin->origins["shard_group_size"] = section.origin(shard_key);
  }

  void origin(const std::string& name, const std::string& key) { made_.origins[name] = root_.origin(key); }

  Document document_;
  std::set<std::string> read_;
  Section root_;
  AccelerateConfig made_;
};

}  // namespace

AccelerateConfig AccelerateConfig::from_text(const std::string& text, const std::string& name) {
  return AccelerateReader{detail::parse_yaml(text, name)}.read();
}

AccelerateConfig AccelerateConfig::from_yaml(const fs::path& file) { return from_text(detail::read_text(file.string()), file.string()); }

EffectiveConfig AccelerateConfig::resolve(ConfigFacts facts) const {
  const bool own_ranks = !facts.num_processes;
  const bool own_precision = !facts.mixed_precision;
  if (own_ranks) facts.num_processes = num_processes;
  if (own_precision) facts.mixed_precision = mixed_precision;
  facts.num_machines = num_machines;
  auto config = deepspeed_plugin ? deepspeed_plugin->resolve(facts)
                : fsdp_plugin    ? fsdp_plugin->resolve(facts)
                                 : detail::from_facts(facts);
  const auto set = [&](const char* row) {
    if (const auto found = origins.find(row); found != origins.end()) config.sources[row] = found->second;
  };
  if (own_ranks) set("num_processes");
  if (own_precision && config.sources["mixed_precision"].starts_with("argument")) set("mixed_precision");
  if (!deepspeed_plugin && !fsdp_plugin) set("strategy");
  if (debug) set("debug");
  config.debug = debug;
  config.notes.insert(config.notes.begin(), notes.begin(), notes.end());
  return config;
}

AccelerateOptions accelerate_options(const fs::path& file, const ConfigFacts& facts) {
  const auto read = AccelerateConfig::from_yaml(file);
  AccelerateOptions options{{}, read.resolve(facts)};
  if (read.num_machines > 1) {
    throw Failure{Errc::Unsupported, file.string() + ": num_machines: " + std::to_string(read.num_machines) + " machines; " + std::string{one_machine}};
  }
  if (!options.config.num_processes) {
    throw Failure{Errc::InvalidConfig, file.string() + ": num_processes: is missing; write how many ranks there shall be"};
  }
  options.scaling.num_workers = *options.config.num_processes;
  options.scaling.use_gpu = !read.use_cpu && read.distributed_type != "MULTI_CPU" && read.distributed_type != "NO";
  options.scaling.pin_threads = read.enable_cpu_affinity;
  return options;
}

}  // namespace troupe
