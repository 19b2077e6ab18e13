// Norms, activations and scales of families beside Llama on each device, against what their declarations say, in
// double.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/device_kv_cache.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_label;
using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceKvCache;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;
using testing_support::stored;

constexpr float kEps = 1e-3f;

enum class NormKind { none, rms, layer };

class DeviceNorms : public testing::TestWithParam<std::tuple<DeviceKind, int>> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(std::get<0>(GetParam())); }
  Device& device() const { return *device_of(std::get<0>(GetParam())); }
  int size() const { return std::get<1>(GetParam()); }  // of a row
  DType dtype() const { return device().activation_dtype(); }
  double tolerance() const { return dtype() == DType::f32 ? 2e-6 : 6e-3; }
  std::vector<float> activations(std::int64_t count, int seed, float scale = 1.0f) const {
    return rounded(dtype(), random_floats(count, seed, scale));
  }
  DeviceMatrix matrix(std::int64_t rows, std::int64_t cols, std::span<const float> values = {}) const {
    return {device(), dtype(), rows, cols, values};
  }
};
INSTANTIATE_TEST_SUITE_P(All, DeviceNorms,
                         testing::Combine(testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                                          testing::Values(8, 30, 640, 5000)),
                         [](const auto& info) {
                           return device_label(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
                         });

std::vector<double> norm_of(NormKind kind, const std::vector<double>& x, const std::vector<float>& weight) {
  if (kind == NormKind::none) return x;
  const auto cols = static_cast<double>(weight.size());
  std::vector<double> y;
  for (std::size_t first = 0; first < x.size(); first += weight.size()) {
    double mean = 0, squares = 0;
    for (std::size_t i = 0; kind == NormKind::layer && i < weight.size(); ++i) mean += x[first + i] / cols;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += (x[first + i] - mean) * (x[first + i] - mean);
    for (std::size_t i = 0; i < weight.size(); ++i)
      y.push_back((x[first + i] - mean) / std::sqrt(squares / cols + kEps) * weight[i]);
  }
  return y;
}

std::vector<double> in_double(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

TEST_P(DeviceNorms, EveryKindOfNormOfWhatIsAddedAndOfTheSum) {
  const std::int64_t rows = 3, cols = size();
  const auto added_weight = random_floats(cols, 1), weight = random_floats(cols, 2);
  const DeviceMatrix of_added(device(), DType::f32, 1, cols, added_weight),
      of_sum(device(), DType::f32, 1, cols, weight);
  const auto norm = [](NormKind kind, const DeviceMatrix& weights) {
    return Norm{kind == NormKind::none ? nullptr : weights.f32(), kEps, kind == NormKind::layer};
  };
  const auto x = activations(rows * cols, 3, 3.0f), delta = activations(rows * cols, 4, 2.0f);
  for (const NormKind added : {NormKind::none, NormKind::rms, NormKind::layer}) {
    for (const NormKind last : {NormKind::none, NormKind::rms, NormKind::layer}) {
      SCOPED_TRACE(concat("norms ", static_cast<int>(added), " and ", static_cast<int>(last)));
      const DeviceMatrix residual = matrix(rows, cols, x), term = matrix(rows, cols, delta), y = matrix(rows, cols);
      LinearInput normed =
          added == NormKind::none
              ? device().reduce_add_rms_norm(residual.view(), term.view(), norm(last, of_sum), y.view())
              : device().reduce_norm_add_rms_norm(residual.view(), term.view(), norm(added, of_added),
                                                  norm(last, of_sum), y.view());
      std::vector<double> sum = norm_of(added, in_double(delta), added_weight);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
      EXPECT_LE(relative_error(residual.values(), sum), tolerance());
      const Tensor got = device().plain_rows(normed);
      EXPECT_EQ(got.data, last == NormKind::none ? residual.data() : y.data());
      const auto expected = norm_of(last, in_double(residual.values()), weight);
      EXPECT_LE(relative_error((last == NormKind::none ? residual : y).values(), expected), tolerance());
      if (last == NormKind::none) EXPECT_TRUE(std::isnan(y.values().front()));

      const DeviceMatrix alone = matrix(rows, cols);
      LinearInput again = device().rms_norm(residual.view(), norm(last, of_sum), alone.view());
      device().plain_rows(again);
      EXPECT_LE(relative_error((last == NormKind::none ? residual : alone).values(), expected), tolerance());
    }
  }
}

// Products take plain norms on their way, others not: a linear gets the same rows of any.
TEST_P(DeviceNorms, LinearsReadEveryKindOfNorm) {
  const std::int64_t rows = 2, cols = size(), outputs = 16;
  const auto weight = random_floats(cols, 5), factors = activations(cols * cols, 6, 0.1f),
             read = activations(outputs * cols, 7, 0.1f);
  const DeviceMatrix weights(device(), DType::f32, 1, cols, weight);
  if (cols > 1000) GTEST_SKIP() << "a product of no other kind than of small rows";
  const auto linear_of = [&](std::int64_t out, const std::vector<float>& values) {
    std::vector<Projection> parts;
    parts.push_back({device().make_matrix(dtype(), out, cols, stored(dtype(), values)), {}});
    return device().make_linear(std::move(parts));
  };
  const auto square = linear_of(cols, factors), reader = linear_of(outputs, read);
  for (const NormKind kind : {NormKind::none, NormKind::rms, NormKind::layer}) {
    const DeviceMatrix x = matrix(rows, cols, activations(rows * cols, 8)), delta = matrix(rows, cols),
                       residual = matrix(rows, cols, activations(rows * cols, 9)), normed = matrix(rows, cols),
                       y = matrix(rows, outputs);
    const Norm norm{kind == NormKind::none ? nullptr : weights.f32(), kEps, kind == NormKind::layer};
    const LinearInput input =
        device().linear_add_norm(*square, x.view(), delta.view(), residual.view(), norm, normed.view());
    device().linear(*reader, input, y.view());
    const auto rows_read = norm_of(kind, in_double(residual.values()), weight);
    std::vector<double> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t o = 0; o < outputs; ++o) {
        double sum = 0;
        for (std::int64_t i = 0; i < cols; ++i) sum += rows_read[row * cols + i] * read[o * cols + i];
        expected.push_back(sum);
      }
    }
    EXPECT_LE(relative_error(y.values(), expected), 2 * tolerance()) << static_cast<int>(kind);
  }
}

TEST_P(DeviceNorms, EmbeddingsAreScaled) {
  const std::int64_t cols = size();
  const auto table = activations(4 * cols, 10);
  const auto embedding = device().make_matrix(dtype(), 4, cols, stored(dtype(), table));
  const std::vector<std::int32_t> tokens{13, 9, 10}, positions{0, 1, 2}, pages{0};
  const ops::SequenceRows sequence{0, 3, 0, pages.data()};
  device().begin_step({tokens, positions, {&sequence, 1}, {}, 16}, {});
  const DeviceMatrix y = matrix(3, cols);
  device().embed(*embedding, 10, y.view(), 25.5f);
  std::vector<float> expected;
  for (std::int64_t i = 3 * cols; i < 4 * cols; ++i) expected.push_back(rounded(dtype(), table[i] * 25.5f));
  expected.insert(expected.end(), cols, 0.0f);  // a token that isn't here
  for (std::int64_t i = 0; i < cols; ++i) expected.push_back(rounded(dtype(), table[i] * 25.5f));
  EXPECT_EQ(y.values(), expected);
}

TEST_P(DeviceNorms, GatedByGelu) {
  const std::int64_t rows = 3, cols = 24, outputs = size();
  const auto x = activations(rows * cols, 11), weights = activations(2 * outputs * cols, 12, 0.5f);
  std::vector<Projection> parts;
  for (const std::int64_t first : {std::int64_t{0}, outputs * cols}) {
    const std::span<const float> part(weights.data() + first, static_cast<std::size_t>(outputs * cols));
    parts.push_back({device().make_matrix(dtype(), outputs, cols, stored(dtype(), part)), {}});
  }
  const auto linear = device().make_linear(std::move(parts));
  const DeviceMatrix input = matrix(rows, cols, x), scratch = matrix(rows, 2 * outputs), y = matrix(rows, outputs);
  device().gated_linear(*linear, input.view(), scratch.view(), y.view(), Activation::gelu_tanh);
  std::vector<double> expected;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      double gate = 0, up = 0;
      for (std::int64_t i = 0; i < cols; ++i) {
        gate += double{x[row * cols + i]} * weights[o * cols + i];
        up += double{x[row * cols + i]} * weights[(outputs + o) * cols + i];
      }
      const double inner = std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate);
      expected.push_back(0.5 * gate * (1 + std::tanh(inner)) * up);
    }
  }
  EXPECT_LE(relative_error(y.values(), expected), 2 * tolerance());
}

TEST_P(DeviceNorms, LogitsAreScaledAndCapped) {
  const auto logits = random_floats(3 * size(), 13, 40.0f);
  for (const float cap : {0.0f, 30.0f}) {
    const DeviceMatrix x(device(), DType::f32, 3, size(), logits);
    device().scale_logits(x.view(), 0.25f, cap);
    std::vector<double> expected;
    for (const float logit : logits) {
      const double scaled = 0.25 * logit;
      expected.push_back(cap == 0.0f ? scaled : cap * std::tanh(scaled / cap));
    }
    EXPECT_LE(relative_error(x.values(), expected), 2e-6) << cap;
  }
}

class DeviceAllHeads : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override { MINISGL_SKIP_WITHOUT(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(All, DeviceAllHeads, testing::Values(DeviceKind::cpu, DeviceKind::cuda),
                         [](const auto& info) { return device_label(info.param); });

// One norm over all query heads and one over all key heads, queries rotated by a table of their own.
TEST_P(DeviceAllHeads, AreNormedTogether) {
  Device& device = *device_of(GetParam());
  const HeadShape shape{.num_heads = 5, .num_kv_heads = 2, .head_dim = 48};
  const std::int64_t rows = 3, width = shape.row_size(), dim = shape.head_dim, half = 8;
  const std::int64_t query_size = shape.num_heads * dim, key_size = shape.num_kv_heads * dim;
  const auto qkv = rounded(device.activation_dtype(), random_floats(rows * width, 14));
  const auto query_weight = random_floats(query_size, 15), key_weight = random_floats(key_size, 16);
  const auto query_table = random_floats(4 * 2 * half, 17), key_table = random_floats(4 * 2 * half, 18);
  const auto f32 = [&](const std::vector<float>& values) {
    return DeviceMatrix(device, DType::f32, 1, std::ssize(values), values);
  };
  const DeviceMatrix data(device, device.activation_dtype(), rows, width, qkv),
      q = f32(query_weight), k = f32(key_weight), query_angles = f32(query_table), key_angles = f32(key_table);
  const DType kv_dtype = device.activation_dtype();
  const DeviceKvCache cache(device, kv_dtype, 1, shape, 4);
  const std::vector<std::int32_t> tokens(rows, 0), positions{1, 2, 3}, pages{0};
  const ops::SequenceRows sequence{0, 3, 1, pages.data()};
  device.begin_step({tokens, positions, {&sequence, 1}, {}, 4}, {});
  device.store_heads(data.view(), shape,
                     {.query_norm = q.f32(),
                      .key_norm = k.f32(),
                      .norms_all_heads = true,
                      .eps = kEps,
                      .rope_table = key_angles.f32(),
                      .query_rope_table = query_angles.f32(),
                      .rotary_dim = static_cast<int>(2 * half)},
                     cache.layer());
  const auto got = data.values(), keys = cache.keys();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (const bool is_key : {false, true}) {
      const std::int64_t size = is_key ? key_size : query_size;
      const float* x = &qkv[row * width + (is_key ? query_size : 0)];
      const auto& weight = is_key ? key_weight : query_weight;
      const float* angles = &(is_key ? key_table : query_table)[positions[row] * 2 * half];
      std::vector<double> expected = norm_of(NormKind::rms, std::vector<double>(x, x + size), weight);
      for (std::int64_t head = 0; head < size; head += dim) {
        for (std::int64_t i = 0; i < half; ++i) {
          const double a = expected[head + i], b = expected[head + half + i];
          expected[head + i] = a * angles[i] - b * angles[half + i];
          expected[head + half + i] = b * angles[i] + a * angles[half + i];
        }
      }
      std::vector<float> actual;
      for (std::int64_t i = 0; i < size; ++i) {
        const std::int64_t place = (i / dim * 4 + positions[row]) * dim + i % dim;
        actual.push_back(is_key ? keys[place] : got[row * width + i]);
      }
      EXPECT_LE(relative_error(actual, expected), 6e-3) << "row " << row << (is_key ? ", keys" : ", queries");
    }
  }
}

}  // namespace
}  // namespace minisgl
