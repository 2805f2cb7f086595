// LibTorch, Apache Arrow and the sentencepiece library in one process: two of them export a
// variable of the same name.
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <arrow/api.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <troupe/tokenize_stage.hpp>

#include "golden.hpp"

extern "C" char FLAGS_minloglevel[64];

namespace troupe {
namespace {

TEST(OneProcess, HoldsLibTorchArrowAndSentencePiece) {
  const std::shared_ptr<const Tokenizer> tokenizer =
      load_tokenizer(test::golden("tokenizers") / "sentencepiece_bpe");
  arrow::StringBuilder texts;
  ASSERT_TRUE(texts.AppendValues({"the light", "and the day"}).ok());
  const auto rows = arrow::RecordBatch::Make(arrow::schema({arrow::field("text", arrow::utf8())}),
                                             2, {*texts.Finish()});
  const auto out = tokenize_stage(tokenizer, {.text = "text"})(rows);
  const auto& lists = static_cast<const arrow::ListArray&>(*out->GetColumnByName("input_ids"));
  EXPECT_EQ(static_cast<std::size_t>(lists.value_length(0)), tokenizer->encode("the light").size());
  EXPECT_EQ(at::ones({2, 2}).sum().item<float>(), 4.0F);
}

TEST(OneProcess, HasItsOwnVariableWhereTwoLibrariesShareAName) {
  EXPECT_EQ(dlsym(RTLD_DEFAULT, "FLAGS_minloglevel"), static_cast<void*>(FLAGS_minloglevel));
  // sentencepiece's start-up code wrote into this one, and so into nothing else.
  EXPECT_TRUE(std::ranges::any_of(std::span{FLAGS_minloglevel}, [](char c) { return c != 0; }));
}

}  // namespace
}  // namespace troupe
