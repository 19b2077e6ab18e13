// A model whose packed weights an earlier start kept computes what it computed, and reads no matrix of its files.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "io/temporary_folder.h"
#include "kernels/cpu/backend.h"
#include "models/load_model.h"
#include "models/memory_source.h"
#include "models/safetensors_folder.h"

namespace minisgl {
namespace {

std::vector<float> logits_of(const std::string& path, const KeepLimits& keep) {
  const auto device = make_cpu_device(1);
  const auto model = load_model(path, *device, {}, LoadFormat::files, Quantize::none, ExpertCut::width, keep);
  KvCache cache(*device, model->spec(), DType::f32, 2, 16);
  const std::vector<std::int32_t> tokens{3, 9, 0}, positions{0, 1, 2}, logit_rows{2}, pages{1};
  const ops::SequenceRows sequence{0, 3, 0, pages.data()};
  const StepBatch batch{tokens, positions, {&sequence, 1}, logit_rows, 16};
  device->begin_step(batch, {});
  const Tensor logits = model->forward(batch, cache);
  return {logits.f32(), logits.f32() + logits.cols};
}

std::vector<std::filesystem::path> kept_in(const KeepLimits& keep) {
  std::vector<std::filesystem::path> found;
  if (!std::filesystem::exists(keep.folder)) return found;
  for (const auto& entry : std::filesystem::directory_iterator(keep.folder)) found.push_back(entry.path());
  return found;
}

TEST(KeptWeights, ASecondStartComputesTheSame) {
  const testing::TemporaryFolder folder;
  testing::write_safetensors(testing::tiny_llama(), folder.path() + "/model");
  const KeepLimits keep{.folder = folder.path() + "/packed", .most_bytes = 1 << 30, .least_bytes = 0};
  const std::string model = folder.path() + "/model";

  const std::vector<float> first = logits_of(model, keep);
  ASSERT_EQ(kept_in(keep).size(), 1u);
  EXPECT_EQ(logits_of(model, keep), first);
  EXPECT_EQ(logits_of(model, {}), first);
  ASSERT_EQ(kept_in(keep).size(), 1u);

  // Written anew, with other weights: what was kept is of other files.
  testing::MemorySource source = testing::tiny_llama();
  source.data("model.layers.1.mlp.up_proj.weight")[5] += 1.0f;
  testing::write_safetensors(source, model);
  const std::vector<float> changed = logits_of(model, keep);
  EXPECT_NE(changed, first);
  EXPECT_EQ(logits_of(model, {}), changed);
  EXPECT_EQ(kept_in(keep).size(), 2u);
}

TEST(KeptWeights, SmallModelsAreNotKept) {
  const testing::TemporaryFolder folder;
  testing::write_safetensors(testing::tiny_llama(), folder.path() + "/model");
  const KeepLimits keep{.folder = folder.path() + "/packed", .most_bytes = 1 << 30};
  logits_of(folder.path() + "/model", keep);
  EXPECT_TRUE(kept_in(keep).empty());
}

}  // namespace
}  // namespace minisgl
