#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace troupe {

/// Two sentences, and whether they say the same (label 1).
struct SentencePair {
  std::string first;
  std::string second;
  std::int64_t label = 0;
};

/// Reads a file of Microsoft's Research Paraphrase Corpus (Dolan and Brockett 2005) as Microsoft
/// (`msr_paraphrase_*.txt`) or GLUE ship it: tab-separated UTF-8 without quoting, LF or CRLF, with
/// or without a byte-order mark. The header says which columns count: "Quality", "#1 String", "#2
/// String", or GLUE's other names "label", "sentence1", "sentence2". Throws Failure{FileNotFound},
/// or {DataMalformed} naming file and line: columns missing or too many, a label other than 0 and
/// 1, an empty sentence, bytes that are not UTF-8.
[[nodiscard]] std::vector<SentencePair> read_mrpc(const std::filesystem::path& file);

struct PairSplits {
  std::vector<SentencePair> train;
  std::vector<SentencePair> eval;
};

struct PairFiles {
  std::filesystem::path train;
  std::filesystem::path eval;
};

/// Where `load_pairs` finds both splits.
[[nodiscard]] PairFiles find_pairs(const std::filesystem::path& directory,
                                   const std::string& train_file = {},
                                   const std::string& eval_file = {});

/// Reads both splits of a directory. Files that are not named are looked for as pairs_train.tsv,
/// train.tsv, msr_paraphrase_train.txt and pairs_dev.tsv, dev.tsv, msr_paraphrase_test.txt. Throws
/// Failure{FileNotFound} naming the directory and the names tried, and what `read_mrpc` throws.
[[nodiscard]] PairSplits load_pairs(const std::filesystem::path& directory,
                                    const std::string& train_file = {},
                                    const std::string& eval_file = {});

}  // namespace troupe
