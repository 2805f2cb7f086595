#include "checkpoint_text.hpp"
#include "commands.hpp"

#include <troupe/gguf_convert.hpp>

#include <unistd.h>

#include <cstdio>
#include <memory>

namespace troupe::tools {

namespace {

struct Options {
  std::string file, out;
  std::string dtype = "bf16";
  std::uint64_t max_shard_mb = 5000;
  bool no_tokenizer = false;
  bool quiet = false;
};

void show(std::uint64_t done, std::uint64_t total) {
  static std::uint64_t shown = 101;
  const auto percent = total == 0 ? 100 : done * 100 / total;
  if (percent == shown) return;
  shown = percent;
  (void)std::fprintf(stderr, "\r%3llu %% of %s%s", static_cast<unsigned long long>(percent), size_text(total).c_str(), done == total ? "\n" : "");
}

int run(const Options& o) {
  GgufConversion conversion;
  conversion.dtype = o.dtype == "f32" ? SafetensorsDtype::F32 : o.dtype == "f16" ? SafetensorsDtype::F16 : SafetensorsDtype::BF16;
  conversion.max_shard_bytes = o.max_shard_mb * 1'000'000;
  conversion.tokenizer = !o.no_tokenizer;
  if (!o.quiet && isatty(STDERR_FILENO) != 0) conversion.progress = show;
  const auto made = convert_gguf(o.file, o.out, conversion);
  std::string list;
  for (const auto& name : made.files) list += (list.empty() ? "" : ", ") + name;
  std::printf("%s: %llu parameters in %s of %s: %s\n", o.out.c_str(), static_cast<unsigned long long>(made.num_params),
              count_text(made.num_tensors, "tensor").c_str(), o.dtype.c_str(), list.c_str());
  return 0;
}

}  // namespace

Command add_convert(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& o = *options;
  auto* command = app.add_subcommand("convert", "Makes a Hugging Face directory of a Llama model in llama.cpp's format (GGUF)");
  command->add_option("GGUF", o.file, "the file: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1")->required();
  command->add_option("DIR", o.out, "directory to make")->required();
  command->add_option("--dtype", o.dtype, "of the weights written")->capture_default_str()->check(CLI::IsMember({"bf16", "f16", "f32"}));
  command->add_option("--max-shard-size", o.max_shard_mb, "MB a file; a larger model is written as shards and an index")->capture_default_str()->check(CLI::Range(1, 1'000'000));
  command->add_flag("--no-tokenizer", o.no_tokenizer, "only weights and config.json");
  command->add_flag("--quiet", o.quiet, "no progress");
  return [options] { return run(*options); };
}

}  // namespace troupe::tools
