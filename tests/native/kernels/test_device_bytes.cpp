// Products with weights in e4m3 on a GPU that has them, for each form of scales and number of rows, against sums in
// double of the values that the bytes stand for. From 65 rows on activations are e4m3, too, which costs 2 to 3%.
#include <gtest/gtest.h>

#include <random>

#include "core/half.h"
#include "gemm/scaled_bytes.h"
#include "kernels/devices.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

using testing_support::device_of;
using testing_support::DeviceKind;
using testing_support::DeviceMatrix;
using testing_support::relative_error;
using testing_support::rounded;

enum class Form { rows, tensor, blocks, other_blocks };
const char* const form_names[] = {"rows", "tensor", "blocks", "otherblocks"};

// A random matrix as a file has it, and its values.
struct Bytes {
  std::int64_t rows, cols;
  std::vector<std::byte> raw;
  ScaleGrid scales;

  Bytes(Form form, std::int64_t rows, std::int64_t cols, unsigned seed) : rows(rows), cols(cols) {
    std::mt19937 random(seed);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const auto bits = static_cast<unsigned>(random() & 0xff);
      raw.push_back(static_cast<std::byte>((bits & 0x7f) == 0x7f ? 0x05 : bits));  // no NaN
    }
    if (form == Form::rows) scales = {1, cols, {}};
    if (form == Form::tensor) scales = {rows, cols, {}};
    if (form == Form::blocks) scales = {128, 128, {}};
    if (form == Form::other_blocks) scales = {64, 32, {}};
    std::uniform_real_distribution<float> size(1e-4f, 4e-4f);
    const std::int64_t down = (rows + scales.block_rows - 1) / scales.block_rows;
    const std::int64_t across = (cols + scales.block_cols - 1) / scales.block_cols;
    for (std::int64_t i = 0; i < down * across; ++i) scales.values.push_back(size(random));
  }
  double value(std::int64_t row, std::int64_t col) const {
    const std::int64_t across = (cols + scales.block_cols - 1) / scales.block_cols;
    const auto at = static_cast<std::size_t>(row / scales.block_rows * across + col / scales.block_cols);
    return double{e4m3_to_f32(std::to_integer<std::uint8_t>(raw[static_cast<std::size_t>(row * cols + col)]))} *
           scales.values[at];
  }
};

class DeviceBytes : public testing::TestWithParam<std::tuple<Form, int>> {
 protected:
  void SetUp() override {
    MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
    if (!device().keeps_e4m3(128, 1, 128)) GTEST_SKIP() << "no products of e4m3";
  }
  Form form() const { return std::get<0>(GetParam()); }
  std::int64_t rows() const { return std::get<1>(GetParam()); }
  Device& device() const { return *device_of(DeviceKind::cuda); }
  double tolerance() const { return rows() > 64 && form() != Form::other_blocks ? 0.04 : 6e-3; }

  std::shared_ptr<const Matrix> matrix(const Bytes& bytes) const {
    if (device().keeps_e4m3(bytes.cols, bytes.scales.block_rows, bytes.scales.block_cols))
      return device().make_scaled_matrix(bytes.rows, bytes.cols, bytes.raw, bytes.scales);
    const auto wide = widen_e4m3(bytes.raw, bytes.rows, bytes.cols, bytes.scales, device().pool());
    return device().make_matrix(DType::bf16, bytes.rows, bytes.cols, std::as_bytes(std::span(wide)));
  }
  std::unique_ptr<const Linear> linear(const std::vector<Bytes>& parts, const std::vector<float>& bias = {}) const {
    std::vector<Projection> projections;
    for (const Bytes& part : parts) projections.push_back({matrix(part), {}});
    projections.front().bias = bias;
    return device().make_linear(std::move(projections));
  }
  DeviceMatrix activations(std::int64_t cols, const std::vector<float>& values) const {
    return {device(), DType::bf16, rows(), cols, values};
  }
  // x [rows, cols] times each part, side by side, and the first part's bias.
  std::vector<double> products(std::span<const float> x, const std::vector<Bytes>& parts,
                               const std::vector<float>& bias = {}) const {
    std::vector<double> y;
    for (std::int64_t row = 0; row < rows(); ++row) {
      for (std::size_t p = 0; p < parts.size(); ++p) {
        for (std::int64_t output = 0; output < parts[p].rows; ++output) {
          double sum = p == 0 && !bias.empty() ? bias[static_cast<std::size_t>(output)] : 0.0;
          for (std::int64_t i = 0; i < parts[p].cols; ++i)
            sum += parts[p].value(output, i) * x[static_cast<std::size_t>(row * parts[p].cols + i)];
          y.push_back(sum);
        }
      }
    }
    return y;
  }
};

INSTANTIATE_TEST_SUITE_P(All, DeviceBytes,
                         testing::Combine(testing::Values(Form::rows, Form::tensor, Form::blocks, Form::other_blocks),
                                          testing::Values(1, 5, 8, 9, 33, 64, 128, 129, 260, 1200)),
                         [](const auto& info) {
                           return std::string(form_names[static_cast<int>(std::get<0>(info.param))]) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(DeviceBytes, Linear) {
  const std::int64_t inputs = 400;
  const std::vector<Bytes> parts{{form(), 256, inputs, 1}, {form(), 136, inputs, 2}};  // blocks aren't joined
  const auto bias = random_floats(256, 3);
  const auto weights = linear(parts, bias);
  const auto values = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows() * inputs), 4));
  const DeviceMatrix x = activations(inputs, values), y(device(), DType::bf16, rows(), 392),
                     logits(device(), DType::f32, rows(), 392);
  device().linear(*weights, x.view(), y.view());
  device().linear(*weights, x.view(), logits.view());
  const auto expected = products(values, parts, bias);
  EXPECT_LT(relative_error(y.values(), expected), tolerance());
  EXPECT_LT(relative_error(logits.values(), expected), tolerance());
}

TEST_P(DeviceBytes, GatedLinear) {
  const std::int64_t inputs = 272, outputs = 256;
  const std::vector<Bytes> parts{{form(), outputs, inputs, 5}, {form(), outputs, inputs, 6}};
  const auto weights = linear(parts);
  const auto values = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows() * inputs), 7));
  const DeviceMatrix x = activations(inputs, values), scratch(device(), DType::bf16, rows(), 2 * outputs),
                     y(device(), DType::bf16, rows(), outputs);
  LinearInput gated = device().gated_linear(*weights, x.view(), scratch.view(), y.view(), Activation::silu);
  device().plain_rows(gated);
  const auto both = products(values, parts);
  std::vector<double> expected;
  for (std::int64_t row = 0; row < rows(); ++row) {
    for (std::int64_t i = 0; i < outputs; ++i) {
      const double gate = both[static_cast<std::size_t>(row * 2 * outputs + i)];
      expected.push_back(gate / (1 + std::exp(-gate)) * both[static_cast<std::size_t>((row * 2 + 1) * outputs + i)]);
    }
  }
  EXPECT_LT(relative_error(y.values(), expected), 2 * tolerance());
}

// The gate that a product may leave to the next.
TEST_P(DeviceBytes, GatedThenLinear) {
  const std::int64_t inputs = 144, hidden = 128, outputs = 128;
  const std::vector<Bytes> parts{{form(), hidden, inputs, 15}, {form(), hidden, inputs, 16}},
      next{{form(), outputs, hidden, 17}};
  const auto weights = linear(parts), down = linear(next);
  const auto values = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows() * inputs), 18));
  const DeviceMatrix x = activations(inputs, values), scratch(device(), DType::bf16, rows(), 2 * hidden),
                     y(device(), DType::bf16, rows(), hidden), z(device(), DType::bf16, rows(), outputs);
  const LinearInput gated = device().gated_linear(*weights, x.view(), scratch.view(), y.view(), Activation::silu);
  device().linear(*down, gated, z.view());
  const auto both = products(values, parts);
  std::vector<float> hiddens;
  for (std::int64_t row = 0; row < rows(); ++row) {
    for (std::int64_t i = 0; i < hidden; ++i) {
      const double gate = both[static_cast<std::size_t>(row * 2 * hidden + i)];
      hiddens.push_back(static_cast<float>(gate / (1 + std::exp(-gate)) *
                                           both[static_cast<std::size_t>((row * 2 + 1) * hidden + i)]));
    }
  }
  EXPECT_LT(relative_error(z.values(), products(hiddens, next)), 3 * tolerance());
}

// The norm that a product leaves to the next.
TEST_P(DeviceBytes, AddNormThenLinear) {
  const std::int64_t inputs = 272, hidden = 256;
  const std::vector<Bytes> down{{form(), hidden, inputs, 8}}, next{{form(), 384, hidden, 9}};
  const auto down_linear = linear(down), next_linear = linear(next);
  const auto values = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows() * inputs), 10));
  const auto before = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows() * hidden), 11));
  const auto weight = random_floats(static_cast<std::size_t>(hidden), 12);
  const DeviceMatrix norm(device(), DType::f32, 1, hidden, weight),
      x = activations(inputs, values), residual = activations(hidden, before),
      delta(device(), DType::bf16, rows(), hidden), normed(device(), DType::bf16, rows(), hidden),
      y(device(), DType::bf16, rows(), 384);
  LinearInput input = device().linear_add_norm(*down_linear, x.view(), delta.view(), residual.view(),
                                               {norm.f32(), 1e-5f}, normed.view());
  device().linear(*next_linear, input, y.view());
  auto sums = products(values, down);
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
  EXPECT_LT(relative_error(residual.values(), sums), tolerance());
  std::vector<float> normal;
  for (std::int64_t row = 0; row < rows(); ++row) {
    double squares = 0;
    for (std::int64_t i = 0; i < hidden; ++i) squares += std::pow(sums[static_cast<std::size_t>(row * hidden + i)], 2);
    for (std::int64_t i = 0; i < hidden; ++i)
      normal.push_back(static_cast<float>(sums[static_cast<std::size_t>(row * hidden + i)] /
                                          std::sqrt(squares / static_cast<double>(hidden) + 1e-5) *
                                          weight[static_cast<std::size_t>(i)]));
  }
  EXPECT_LT(relative_error(y.values(), products(normal, next)), 2 * tolerance());
}

TEST(DeviceQuantized, KeepsTheValues) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  Device& device = *device_of(DeviceKind::cuda);
  if (!device.keeps_e4m3(128, 1, 128)) GTEST_SKIP() << "no products of e4m3";
  const std::int64_t rows = 3, inputs = 272, outputs = 192;
  const auto weights = rounded(DType::bf16, random_floats(static_cast<std::size_t>(outputs * inputs), 13, 0.05f));
  const auto values = rounded(DType::bf16, random_floats(static_cast<std::size_t>(rows * inputs), 14));
  const auto matrix = device.quantized(
      device.make_matrix(DType::bf16, outputs, inputs, testing_support::stored(DType::bf16, weights)), Quantize::fp8);
  EXPECT_EQ(matrix->dtype(), DType::f8e4m3);
  std::vector<Projection> projections;
  projections.push_back({matrix, {}});
  const auto linear = device.make_linear(std::move(projections));
  const DeviceMatrix x(device, DType::bf16, rows, inputs, values), y(device, DType::bf16, rows, outputs);
  device.linear(*linear, x.view(), y.view());
  std::vector<double> expected;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t output = 0; output < outputs; ++output) {
      double sum = 0;
      for (std::int64_t i = 0; i < inputs; ++i)
        sum += double{weights[static_cast<std::size_t>(output * inputs + i)]} *
               values[static_cast<std::size_t>(row * inputs + i)];
      expected.push_back(sum);
    }
  }
  EXPECT_LT(relative_error(y.values(), expected), 0.04);
}

}  // namespace
}  // namespace minisgl
