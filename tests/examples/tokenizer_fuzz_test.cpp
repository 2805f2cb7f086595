// The fuzzers' functions on the golden tokenizers and on a fixed series of damaged copies.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "../fuzz/targets.hpp"
#include "golden.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> files_named(const std::string& name) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator{test::golden("tokenizers")}) {
    if (entry.path().filename() == name) paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  std::vector<std::string> out;
  for (const auto& path : paths) out.push_back(test::read_file(path));
  return out;
}

void feed(int (*target)(const std::uint8_t*, std::size_t), const std::string& text) {
  target(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}

/// Some bits flipped, a part of another file put in, an end cut off.
std::string damaged(const std::vector<std::string>& files, std::mt19937& draw) {
  auto text = files[draw() % files.size()];
  for (unsigned flips = draw() % 4; flips > 0; --flips)
    text[draw() % text.size()] ^= static_cast<char>(1U << draw() % 8);
  const auto& other = files[draw() % files.size()];
  if (draw() % 3 == 0) text.insert(draw() % text.size(), other, draw() % other.size(), draw() % 60);
  if (draw() % 3 == 0) text.erase(draw() % text.size(), draw() % 40);
  if (draw() % 7 == 0) text.resize(draw() % text.size());
  return text;
}

TEST(TokenizerFuzz, DamagedTokenizerJsonIsAValueOrAFailure) {
  const auto files = files_named("tokenizer.json");
  ASSERT_GT(files.size(), 10U);
  for (const auto& text : files) feed(fuzz::tokenizer_json, text);
  std::mt19937 draw{7};
  for (int round = 0; round < 400; ++round) feed(fuzz::tokenizer_json, damaged(files, draw));
}

/// Settings that are whole but odd: a section of one kind's file in another's.
TEST(TokenizerFuzz, MixedTokenizerJsonIsAValueOrAFailure) {
  std::vector<nlohmann::json> files;
  for (const auto& text : files_named("tokenizer.json"))
    files.push_back(nlohmann::json::parse(text));
  std::mt19937 draw{9};
  for (int round = 0; round < 300; ++round) {
    auto mixed = files[draw() % files.size()];
    for (const auto* key :
         {"normalizer", "pre_tokenizer", "decoder", "post_processor", "added_tokens"}) {
      if (draw() % 2 == 0) mixed[key] = files[draw() % files.size()][key];
    }
    feed(fuzz::tokenizer_json, mixed.dump());
  }
}

TEST(TokenizerFuzz, DamagedSentencePieceModelIsAValueOrAFailure) {
  const auto files = files_named("tokenizer.model");
  ASSERT_EQ(files.size(), 2U);
  for (const auto& text : files) feed(fuzz::tokenizer_model, text);
  std::mt19937 draw{8};
  for (int round = 0; round < 2000; ++round) feed(fuzz::tokenizer_model, damaged(files, draw));
}

TEST(TokenizerFuzz, WhatLibFuzzerFoundIsAValueOrAFailure) {
  int count = 0;
  const auto folder = test::golden("../fuzz/corpus/tokenizer_model");
  for (const auto& entry : fs::directory_iterator{folder}) {
    feed(fuzz::tokenizer_model, test::read_file(entry.path()));
    ++count;
  }
  EXPECT_GT(count, 0);
}

}  // namespace
}  // namespace troupe
