// The same files as at::Tensor.
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <troupe/foreign_tensors.hpp>

#include "foreign_helpers.hpp"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::fixture;
using testing::Scratch;

TEST(ForeignTensors, EveryDtypeOfTorchEqualsItsSafetensorsTwin) {
  const auto read = read_torch_tensors(fixture("dtypes.bin"));
  const auto want = read_safetensors(fixture("dtypes.safetensors"));
  ASSERT_EQ(read.size(), want.size());
  for (const auto& [name, tensor] : want) {
    if (name == "complex128") continue;  // safetensors has no such dtype: its twin holds bytes
    const auto& mine = read.at(name);
    EXPECT_EQ(mine.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(mine.sizes(), tensor.sizes()) << name;
    const auto packed = mine.contiguous();
    EXPECT_EQ(std::memcmp(packed.const_data_ptr(), tensor.const_data_ptr(), tensor.nbytes()), 0)
        << name;
  }
  EXPECT_EQ(read.at("complex128").scalar_type(), at::kComplexDouble);
  EXPECT_TRUE(read.at("transposed").t().contiguous().flatten().equal(at::arange(24, at::kFloat)));
}

TEST(ForeignTensors, AModelDirectoryMayHoldAPickle) {
  const Scratch scratch;
  fs::copy(fixture("module.bin"), scratch.path / "pytorch_model.bin");
  const auto read = read_model_directory(scratch.path);
  const auto want = read_safetensors(fixture("module.safetensors"));
  ASSERT_EQ(read.size(), want.size());
  for (const auto& [name, tensor] : want) EXPECT_TRUE(read.at(name).equal(tensor)) << name;
}

TEST(ForeignTensors, OutliveTheFileAndDoNotWriteToIt) {
  auto w = read_model_directory(fixture("sharded_bin")).at("layer.0.weight");
  const auto sum = w.sum().item<float>();
  w.add_(1);
  EXPECT_EQ(read_model_directory(fixture("sharded_bin")).at("layer.0.weight").sum().item<float>(),
            sum);
}

TEST(ForeignTensors, BytesAtAnOddAddressAreCopied) {
  const auto memory = std::make_shared<std::vector<std::byte>>(17);
  const float values[] = {1, 2, 3, 4};
  std::memcpy(memory->data() + 1, values, sizeof values);
  ForeignTensor odd;
  odd.shape = {2, 2};
  odd.strides = {1, 2};
  odd.offset = 1;
  odd.storage = *memory;
  odd.keep = memory;
  const auto tensor = to_tensor(odd);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % alignof(float), 0U);
  EXPECT_TRUE(tensor.flatten().equal(at::arange(1, 5, at::kFloat).reshape({2, 2}).t().flatten()));
}

}  // namespace
}  // namespace troupe
