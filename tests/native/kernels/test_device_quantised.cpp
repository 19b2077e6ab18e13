// Products and embeddings of weights that a GPU computes in 4 to 8 bits, against the values of their blocks in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "gemm/reference.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;

// A stored matrix and its values.
struct Blocks {
  Blocks(DType dtype, std::int64_t rows, std::int64_t cols, unsigned seed) : dtype(dtype), rows(rows), cols(cols) {
    const std::vector<std::uint8_t> bytes = reference::random_weights(dtype, rows, cols, seed);
    raw.resize(bytes.size());
    std::ranges::transform(bytes, raw.begin(), [](std::uint8_t byte) { return static_cast<std::byte>(byte); });
    values = reference::values(dtype, bytes, rows, cols);
  }
  std::shared_ptr<const Matrix> on(Device& device) const { return device.make_matrix(dtype, rows, cols, raw); }
  double product(std::int64_t row, std::span<const float> x) const {
    double sum = 0;
    for (std::int64_t i = 0; i < cols; ++i) sum += values[static_cast<std::size_t>(row * cols + i)] * x[i];
    return sum;
  }

  DType dtype;
  std::int64_t rows, cols;
  std::vector<std::byte> raw;
  std::vector<double> values;
};

// x · Wᵀ of the matrices side by side, [rows of x, all outputs].
std::vector<double> products(const std::vector<Blocks>& parts, const std::vector<float>& x) {
  const std::int64_t inputs = parts.front().cols;
  std::vector<double> sums;
  for (std::size_t first = 0; first < x.size(); first += inputs) {
    for (const Blocks& part : parts)
      for (std::int64_t row = 0; row < part.rows; ++row)
        sums.push_back(part.product(row, std::span(x).subspan(first, inputs)));
  }
  return sums;
}

// Of bf16 outputs, and of weights that become bf16 where there are more rows than one; two products make a gated
// output.
constexpr double kTolerance = 4e-3, kGatedTolerance = 1e-2;
constexpr std::int64_t kRows[] = {1, 2, 8, 9, 33, 64, 128, 150, 192, 256, 300};

class DeviceQuantised : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
    if (!device().can_quantize(Quantize::int4)) GTEST_SKIP() << "no products of 4 to 8 bits";
  }
  Device& device() const { return *device_of(DeviceKind::cuda); }
};
INSTANTIATE_TEST_SUITE_P(All, DeviceQuantised,
                         testing::Values(DType::q4_0, DType::q4_1, DType::q4_k, DType::q5_0, DType::q5_1, DType::q5_k,
                                         DType::q6_k, DType::q8_0, DType::int4_64, DType::int4_128),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST_P(DeviceQuantised, TakesTheBytesOfTheFormat) {
  const Blocks blocks(GetParam(), 512, 1024, 1);
  EXPECT_LT(blocks.on(device())->nbytes(), static_cast<std::size_t>(512 * 1024 * 1.21));  // bf16: 2 per element
}

TEST_P(DeviceQuantised, Products) {
  for (const auto& [outputs, inputs] :
       {std::pair<std::int64_t, std::int64_t>{72, 768}, {1003, 512}, {4400, 256}, {24, 9216}}) {
    const std::vector<Blocks> blocks{{GetParam(), outputs, inputs, 2}};
    std::vector<float> bias = random_floats(outputs, 3);
    const auto linear = device().make_linear({{blocks[0].on(device()), bias}});
    for (const std::int64_t rows : kRows) {
      const auto x = rounded(DType::bf16, random_floats(rows * inputs, 4));
      std::vector<double> expected = products(blocks, x);
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % static_cast<std::size_t>(outputs)];
      const DeviceMatrix in(device(), DType::bf16, rows, inputs, x);
      for (const DType dtype : {DType::bf16, DType::f32}) {
        const DeviceMatrix y(device(), dtype, rows, outputs);
        device().linear(*linear, in.view(), y.view());
        EXPECT_LT(relative_error(y.values(), expected), kTolerance) << rows << " rows, " << outputs << " x " << inputs;
      }
    }
  }
}

// A layer that adds to the residual, and a gated one that reads the norm of that.
void check_norm_between(Device& device, DType before_norm, DType after_norm) {
  const std::int64_t hidden = 512, inner = 256;
  const std::vector<Blocks> out{{before_norm, hidden, inner, 5}};
  const std::vector<Blocks> gate_up{{after_norm, inner, hidden, 6}, {after_norm, inner, hidden, 7}};
  const auto first = device.make_linear({{out[0].on(device), {}}});
  const auto second = device.make_linear({{gate_up[0].on(device), {}}, {gate_up[1].on(device), {}}});
  const auto weight = random_floats(hidden, 8);
  const DeviceMatrix norm(device, DType::f32, 1, hidden, weight);
  for (const std::int64_t rows : kRows) {
    const auto x = rounded(DType::bf16, random_floats(rows * inner, 9));
    const auto before = rounded(DType::bf16, random_floats(rows * hidden, 10, 4.0f));
    const DeviceMatrix in(device, DType::bf16, rows, inner, x), residual(device, DType::bf16, rows, hidden, before);
    const DeviceMatrix delta(device, DType::bf16, rows, hidden), normed(device, DType::bf16, rows, hidden);
    const DeviceMatrix scratch(device, DType::bf16, rows, 2 * inner), y(device, DType::bf16, rows, inner);
    const LinearInput ready =
        device.linear_add_norm(*first, in.view(), delta.view(), residual.view(), {norm.f32(), 1e-5f}, normed.view());
    device.gated_linear(*second, ready, scratch.view(), y.view(), Activation::silu);
    std::vector<double> sums = products(out, x);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
    EXPECT_LT(relative_error(residual.values(), sums), kTolerance) << rows << " rows";
    std::vector<float> rows_in;  // the norm of what was stored
    const std::vector<float> stored = residual.values();
    for (std::int64_t row = 0; row < rows; ++row) {
      double squares = 0;
      for (std::int64_t i = 0; i < hidden; ++i) squares += std::pow(stored[row * hidden + i], 2);
      for (std::int64_t i = 0; i < hidden; ++i)
        rows_in.push_back(
            static_cast<float>(stored[row * hidden + i] / std::sqrt(squares / hidden + 1e-5) * weight[i]));
    }
    const std::vector<double> both = products(gate_up, rows_in);
    std::vector<double> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t i = 0; i < inner; ++i) {
        const double gate = both[row * 2 * inner + i];
        expected.push_back(gate / (1 + std::exp(-gate)) * both[row * 2 * inner + inner + i]);
      }
    }
    EXPECT_LT(relative_error(y.values(), expected), kGatedTolerance) << rows << " rows";
  }
}

TEST_P(DeviceQuantised, GatedProductsOfTheNormOfASum) {
  check_norm_between(device(), GetParam(), GetParam());
}

// As where a file keeps some matrices as they were.
TEST_P(DeviceQuantised, GatedProductsBesideLayersInBf16) {
  check_norm_between(device(), DType::bf16, GetParam());
  check_norm_between(device(), GetParam(), DType::bf16);
}

// Weights that are rounded at load are those of the format's definition: evenly spaced between a group's extremes, by
// a scale and an offset that are kept in f16.
TEST(DeviceQuantisedLayers, OfWeightsInBf16) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  Device& device = *device_of(DeviceKind::cuda);
  if (!device.can_quantize(Quantize::int4)) GTEST_SKIP() << "no products of 4 to 8 bits";
  const std::int64_t rows = 3, inputs = 384, outputs = 64;
  const auto weights = rounded(DType::bf16, random_floats(outputs * inputs, 16, 0.05f));
  const auto x = rounded(DType::bf16, random_floats(rows * inputs, 17));
  for (const auto& [format, size, steps] :
       {std::tuple{Quantize::int4, std::int64_t{128}, 15.0}, {Quantize::q4_1, std::int64_t{32}, 15.0}}) {
    const auto matrix = device.quantized(
        device.make_matrix(DType::bf16, outputs, inputs, testing_support::stored(DType::bf16, weights)), format);
    EXPECT_LT(matrix->nbytes(), static_cast<std::size_t>(outputs * inputs * 5 / 8 + 1));
    std::vector<double> values;
    for (std::size_t first = 0; first < weights.size(); first += size) {
      const auto group = std::span(weights).subspan(first, size);
      const auto [low, high] = std::ranges::minmax(group);
      const bool even = format == Quantize::int4;
      const float step = even ? std::max(-low, high) / 7.5f : (high - low) / static_cast<float>(steps);
      const std::vector<float> kept = rounded(DType::f16, {step, low});
      const double scale = kept[0], offset = even ? -8 * scale : kept[1];
      for (const float weight : group)
        values.push_back(std::clamp(std::nearbyint((weight - offset) / scale), 0.0, steps) * scale + offset);
    }
    const auto linear = device.make_linear({{matrix, {}}});
    const DeviceMatrix in(device, DType::bf16, rows, inputs, x), y(device, DType::f32, rows, outputs);
    device.linear(*linear, in.view(), y.view());
    std::vector<double> expected;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t output = 0; output < outputs; ++output) {
        double sum = 0;
        for (std::int64_t i = 0; i < inputs; ++i) sum += values[output * inputs + i] * x[row * inputs + i];
        expected.push_back(sum);
      }
    }
    EXPECT_LT(relative_error(y.values(), expected), 5e-3);
  }
}

// As a file has them that keeps some matrices in more bits: one layer all the same, without a loss.
TEST(DeviceQuantisedLayers, OfSeveralFormats) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  Device& device = *device_of(DeviceKind::cuda);
  if (!device.can_quantize(Quantize::int4)) GTEST_SKIP() << "no products of 4 to 8 bits";
  const std::int64_t inputs = 512;
  const std::vector<Blocks> blocks{{DType::q4_k, 64, inputs, 11},
                                   {DType::q5_0, 24, inputs, 12},
                                   {DType::q6_k, 40, inputs, 13},
                                   {DType::q8_0, 8, inputs, 14}};
  std::vector<Projection> parts;
  for (const Blocks& part : blocks) parts.push_back({part.on(device), {}});
  const auto linear = device.make_linear(std::move(parts));
  EXPECT_LT(linear->nbytes(), 136 * inputs * 5 / 4 + 1);
  for (const std::int64_t rows : kRows) {
    const auto x = rounded(DType::bf16, random_floats(rows * inputs, 15));
    const DeviceMatrix in(device, DType::bf16, rows, inputs, x), y(device, DType::f32, rows, 136);
    device.linear(*linear, in.view(), y.view());
    EXPECT_LT(relative_error(y.values(), products(blocks, x)), rows > 1 ? kTolerance : 5e-4) << rows << " rows";
  }
}

}  // namespace
}  // namespace minisgl
