// Models of random weights, from a configuration alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "io/temporary_folder.h"
#include "kernels/cpu/backend.h"
#include "models/load_model.h"

namespace minisgl {
namespace {

constexpr const char* kConfig = R"({"model_type": "qwen2", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})";

TEST(DummyWeights, ComputeWithoutFiles) {
  const testing::TemporaryFolder folder;
  folder.write("config.json", kConfig);
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

TEST(DummyWeights, FilesAreWantedOtherwise) {
  const testing::TemporaryFolder folder;
  folder.write("config.json", kConfig);
  const auto device = make_cpu_device(1);
  EXPECT_THROW(load_model(folder.path(), *device, {}), InputError);
}

}  // namespace
}  // namespace minisgl
