// Models of random weights, from a configuration alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "engine/async_device.h"
#include "io/temporary_folder.h"
#include "kernels/cpu/backend.h"
#include "models/load_model.h"

namespace minisgl {
namespace {

constexpr const char* kConfig = R"({"model_type": "qwen2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})";

constexpr const char* kExperts = R"({"model_type": "qwen2_moe", "vocab_size": 96, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 64, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
  "shared_expert_intermediate_size": 40, "mlp_only_layers": [0]})";

class DummyWeights : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(All, DummyWeights, ::testing::Values(kConfig, kExperts));

TEST_P(DummyWeights, ComputeWithoutFiles) {
  const testing::TemporaryFolder folder;
  folder.write("config.json", GetParam());
  const auto device = make_cpu_device(1);
  const auto model = load_model(folder.path(), *device, {}, LoadFormat::dummy);
  EXPECT_EQ(model->weight_dtype(), DType::bf16);

  KvCache cache(*device, model->spec(), DType::f32, 2, 16);
  const std::vector<std::int32_t> tokens{3, 95, 0}, positions{0, 1, 2}, logit_rows{2}, pages{1};
  const ops::SequenceRows sequence{0, 3, 0, pages.data()};
  const StepBatch batch{tokens, positions, {&sequence, 1}, logit_rows, 16};
  device->begin_step(batch, {});
  const Tensor logits = model->forward(batch, cache);
  ASSERT_EQ(logits.cols, 96);
  float least = logits.f32()[0], most = least;
  for (int i = 0; i < 96; ++i) {
    ASSERT_TRUE(std::isfinite(logits.f32()[i]));
    least = std::min(least, logits.f32()[i]);
    most = std::max(most, logits.f32()[i]);
  }
  EXPECT_LT(least, most);
}

TEST_P(DummyWeights, FilesAreWantedOtherwise) {
  const testing::TemporaryFolder folder;
  folder.write("config.json", GetParam());
  const auto device = make_cpu_device(1);
  EXPECT_THROW(load_model(folder.path(), *device, {}), InputError);
}

TEST(DummyExperts, ADeviceThatComputesNoneRefusesThem) {
  const testing::TemporaryFolder folder;
  folder.write("config.json", kExperts);
  testing_support::AsyncDevice device;
  try {
    load_model(folder.path(), device, {}, LoadFormat::dummy);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("qwen2_moe is a mixture of experts, which "), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace minisgl
