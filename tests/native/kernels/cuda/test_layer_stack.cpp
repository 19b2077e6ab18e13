// All layers as one operation, against the same layers operation by operation on the same device.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/device_kv_cache.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceKvCache;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;
using testing_support::stored;

constexpr float kEps = 1e-5f;
constexpr int kPageSize = 16;

struct StackCase {
  const char* name;
  int num_layers;
  std::int64_t hidden, intermediate;
  HeadShape shape;
  bool norms_heads, biased;
  std::vector<std::int32_t> lengths;  // of the sequences, the step's tokens included
};

// The weights of a layer, and its cache twice: one for each way.
struct Layer {
  std::unique_ptr<const Linear> qkv, output, gate_up, down;
  DeviceMatrix input_norm, mlp_norm, query_norm, key_norm;
  DeviceKvCache cache, stacked_cache;
};

class GpuLayerStack : public testing::TestWithParam<StackCase> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(DeviceKind::cuda); }
  Device& device() const { return *device_of(DeviceKind::cuda); }
  DType dtype() const { return device().activation_dtype(); }

  Projection projection(std::int64_t outputs, std::int64_t inputs, bool biased = false) {
    const auto weights = random_floats(outputs * inputs, ++seed_, 1.0f / std::sqrt(static_cast<float>(inputs)));
    return {device().make_matrix(dtype(), outputs, inputs, stored(dtype(), weights)),
            biased ? random_floats(outputs, ++seed_, 0.3f) : std::vector<float>{}};
  }
  std::unique_ptr<const Linear> linear(std::vector<Projection> projections) {
    return device().make_linear(std::move(projections));
  }
  DeviceMatrix norm(std::int64_t size) {
    auto values = random_floats(size, ++seed_, 0.2f);
    for (float& value : values) value += 1.0f;
    return {device(), DType::f32, 1, size, values};
  }
  Layer make_layer(const StackCase& c, std::int64_t num_pages) {
    const HeadShape& s = c.shape;
    const std::int64_t heads = std::int64_t{s.num_heads} * s.head_dim,
                       kv_heads = std::int64_t{s.num_kv_heads} * s.head_dim;
    std::vector<Projection> qkv;
    for (const std::int64_t outputs : {heads, kv_heads, kv_heads})
      qkv.push_back(projection(outputs, c.hidden, c.biased));
    std::vector<Projection> output, gate_up, down;
    output.push_back(projection(c.hidden, heads));
    for (int i = 0; i < 2; ++i) gate_up.push_back(projection(c.intermediate, c.hidden));
    down.push_back(projection(c.hidden, c.intermediate));
    const std::int64_t cached = num_pages * kPageSize * kv_heads;
    const auto keys = rounded(DType::bf16, random_floats(cached, ++seed_)),
               values = rounded(DType::bf16, random_floats(cached, ++seed_));
    return {linear(std::move(qkv)),
            linear(std::move(output)),
            linear(std::move(gate_up)),
            linear(std::move(down)),
            norm(c.hidden),
            norm(c.hidden),
            norm(s.head_dim),
            norm(s.head_dim),
            DeviceKvCache(device(), DType::bf16, num_pages, s, kPageSize, keys, values),
            DeviceKvCache(device(), DType::bf16, num_pages, s, kPageSize, keys, values)};
  }

  unsigned seed_ = 0;
};

TEST_P(GpuLayerStack, IsWhatItsOperationsAre) {
  const StackCase& c = GetParam();
  const auto num_rows = std::ssize(c.lengths);
  std::vector<std::vector<std::int32_t>> pages;
  std::int64_t num_pages = 0;
  for (const std::int32_t length : c.lengths) {
    pages.emplace_back((length + kPageSize - 1) / kPageSize);
    std::iota(pages.back().rbegin(), pages.back().rend(), static_cast<std::int32_t>(num_pages));
    num_pages += std::ssize(pages.back());
  }
  std::vector<Layer> layers;
  for (int i = 0; i < c.num_layers; ++i) layers.push_back(make_layer(c, num_pages));

  StackedLayers stacked{.layers = {},
                        .hidden = c.hidden,
                        .intermediate = c.intermediate,
                        .shape = c.shape,
                        .norm_eps = kEps,
                        .rotary_dim = c.shape.head_dim,
                        .score_scale = 1.0f / std::sqrt(static_cast<float>(c.shape.head_dim))};
  for (const Layer& layer : layers) {
    stacked.layers.push_back({.qkv = layer.qkv.get(),
                              .attention_output = layer.output.get(),
                              .gate_up = layer.gate_up.get(),
                              .down = layer.down.get(),
                              .input_norm = layer.input_norm.f32(),
                              .mlp_norm = layer.mlp_norm.f32(),
                              .query_norm = c.norms_heads ? layer.query_norm.f32() : nullptr,
                              .key_norm = c.norms_heads ? layer.key_norm.f32() : nullptr,
                              .cache = layer.stacked_cache.layer()});
  }
  const std::unique_ptr<LayerStack> stack = device().make_layer_stack(stacked);
  if (stack == nullptr) GTEST_SKIP() << "this device has no kernel of all layers";

  const std::int32_t longest = *std::ranges::max_element(c.lengths);
  const DeviceMatrix rope(device(), DType::f32, longest, c.shape.head_dim,
                          random_floats(std::int64_t{longest} * c.shape.head_dim, 1000, 0.7f));
  const DeviceMatrix last_norm = norm(c.hidden);
  const Norm final_norm{last_norm.f32(), kEps};
  std::vector<std::int32_t> tokens(num_rows, 0), positions, rows(num_rows);
  std::vector<ops::SequenceRows> sequences;
  std::iota(rows.begin(), rows.end(), 0);
  for (std::int32_t row = 0; row < num_rows; ++row) {
    positions.push_back(c.lengths[row] - 1);
    sequences.push_back({row, 1, positions.back(), pages[row].data()});
  }
  // Twice: a step finds what the one before left behind.
  for (int step = 0; step < 2; ++step) {
    const auto x = rounded(dtype(), random_floats(num_rows * c.hidden, 2000 + step));
    device().begin_step({tokens, positions, sequences, rows, kPageSize}, {});
    const DeviceMatrix residual(device(), dtype(), num_rows, c.hidden, x),
        normed(device(), dtype(), num_rows, c.hidden);
    ASSERT_TRUE(stack->takes(num_rows));
    EXPECT_GE(stack->most_rows(), num_rows);
    EXPECT_FALSE(stack->takes(stack->most_rows() + 1));
    LinearInput got = stack->run(residual.view(), rope.f32(), final_norm, normed.view());
    device().plain_rows(got);

    const DeviceMatrix expected(device(), dtype(), num_rows, c.hidden, x), y(device(), dtype(), num_rows, c.hidden),
        delta(device(), dtype(), num_rows, c.hidden), qkv(device(), dtype(), num_rows, c.shape.row_size()),
        attended(device(), dtype(), num_rows, std::int64_t{c.shape.num_heads} * c.shape.head_dim),
        gate_up(device(), dtype(), num_rows, 2 * c.intermediate),
        activated(device(), dtype(), num_rows, c.intermediate);
    LinearInput input = device().rms_norm(expected.view(), {layers[0].input_norm.f32(), kEps}, y.view());
    for (int i = 0; i < c.num_layers; ++i) {
      const Layer& layer = layers[i];
      device().linear_heads(*layer.qkv, input, qkv.view(), c.shape,
                            {.query_norm = c.norms_heads ? layer.query_norm.f32() : nullptr,
                             .key_norm = c.norms_heads ? layer.key_norm.f32() : nullptr,
                             .eps = kEps,
                             .rope_table = rope.f32(),
                             .rotary_dim = c.shape.head_dim},
                            layer.cache.layer());
      device().paged_attention(qkv.view(), c.shape, layer.cache.layer(), stacked.score_scale, 0, attended.view());
      input = device().linear_add_norm(*layer.output, attended.view(), delta.view(), expected.view(),
                                       {layer.mlp_norm.f32(), kEps}, y.view());
      input = device().gated_linear(*layer.gate_up, input, gate_up.view(), activated.view());
      input = device().linear_add_norm(*layer.down, input, delta.view(), expected.view(),
                                       i + 1 < c.num_layers ? Norm{layers[i + 1].input_norm.f32(), kEps} : final_norm,
                                       y.view());
    }
    device().plain_rows(input);
    const auto wide = [](const std::vector<float>& values) {
      return std::vector<double>(values.begin(), values.end());
    };
    EXPECT_LE(relative_error(residual.values(), wide(expected.values())), 1e-2);
    EXPECT_LE(relative_error(normed.values(), wide(y.values())), 1.2e-2);
    for (const Layer& layer : layers) {
      EXPECT_LE(relative_error(layer.stacked_cache.keys(), wide(layer.cache.keys())), 2e-3);
      EXPECT_LE(relative_error(layer.stacked_cache.values(), wide(layer.cache.values())), 2e-3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GpuLayerStack,
    testing::Values(StackCase{"one", 1, 256, 96, {2, 1, 128}, false, false, {1}},
                    StackCase{"small_heads", 3, 384, 1056, {12, 4, 64}, true, false, {300, 1, 17}},
                    StackCase{"two_rows", 2, 1024, 3072, {16, 8, 128}, true, false, {2100, 33}},
                    StackCase{"three_rows", 3, 1024, 3072, {16, 8, 128}, true, false, {129, 777, 16}},
                    StackCase{"many_rows", 2, 1024, 3072, {16, 8, 128}, true, false, {300, 1, 17, 1000}},
                    StackCase{"long", 2, 1024, 3072, {16, 8, 128}, true, false, {9000}},
                    StackCase{"long_rows", 2, 1024, 3072, {16, 8, 128}, true, false, {4100, 5, 2500, 3333}},
                    StackCase{"biased", 2, 896, 4864, {14, 2, 64}, false, true, {100, 2600}},
                    StackCase{"biased_row", 2, 896, 4864, {14, 2, 64}, false, true, {260}},
                    StackCase{"wide", 1, 4096, 14336, {32, 8, 128}, false, false, {700}},
                    StackCase{"wide_rows", 1, 4096, 14336, {32, 8, 128}, false, false, {700, 33}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace minisgl
