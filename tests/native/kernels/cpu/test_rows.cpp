// Norms, SiLU, rotation and exp of each instruction set against plain double arithmetic, and rows against neighbours.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/cpu_features.h"
#include "core/error.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/row_math.h"
#include "kernels/random_floats.h"

namespace minisgl {
namespace {

std::vector<double> reference_rms_norm(const std::vector<float>& x, const std::vector<float>& weight, double eps) {
  double squares = 0;
  for (const float value : x) squares += double{value} * value;
  std::vector<double> y;
  for (std::size_t i = 0; i < x.size(); ++i)
    y.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + eps) * weight[i]);
  return y;
}

void expect_close(const std::vector<float>& got, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], tolerance * (1e-3 + std::abs(expected[i]))) << "element " << i;
}

class Rows : public testing::TestWithParam<std::tuple<CpuIsa, int>> {
 protected:
  const CpuKernels& kernels = cpu_kernels(std::get<0>(GetParam()));
  const int dim = std::get<1>(GetParam());
  const std::vector<float> x = random_floats(dim, 1, 3.0f), other = random_floats(dim, 2),
                           weight = random_floats(dim, 3);
  std::vector<float> y = std::vector<float>(dim);
};

INSTANTIATE_TEST_SUITE_P(All, Rows,
                         testing::Combine(testing::ValuesIn(supported_base_isas().begin(), supported_base_isas().end()),
                                          testing::Values(1, 2, 7, 8, 30, 64, 100, 576, 1537)),
                         [](const auto& info) {
                           return std::string(cpu_isa_label(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(Rows, RmsNorm) {
  kernels.rms_norm(x.data(), weight.data(), 1e-5f, dim, y.data());
  expect_close(y, reference_rms_norm(x, weight, 1e-5), 1e-6);
  std::vector<float> in_place = x;
  kernels.rms_norm(in_place.data(), weight.data(), 1e-5f, dim, in_place.data());
  EXPECT_EQ(in_place, y);
}

TEST_P(Rows, AddRmsNorm) {
  std::vector<float> residual = x, sum(dim);
  for (int i = 0; i < dim; ++i) sum[i] = x[i] + other[i];
  kernels.add_rms_norm(residual.data(), other.data(), weight.data(), 1e-6f, dim, y.data());
  EXPECT_EQ(residual, sum);
  expect_close(y, reference_rms_norm(sum, weight, 1e-6), 1e-6);
}

TEST_P(Rows, SiluMul) {
  const auto gate = random_floats(dim, 4, 10.0f);
  kernels.silu_mul(gate.data(), other.data(), dim, y.data());
  std::vector<double> expected;
  for (int i = 0; i < dim; ++i) expected.push_back(gate[i] / (1 + std::exp(-double{gate[i]})) * other[i]);
  expect_close(y, expected, 1e-6);
}

TEST_P(Rows, SiluMulIsFiniteForLargeNumbers) {
  std::vector<float> gate(dim, -1e30f), up(dim, 2.0f);
  kernels.silu_mul(gate.data(), up.data(), dim, y.data());
  for (const float value : y) EXPECT_NEAR(value, 0.0f, 1e-6f);
  gate.assign(dim, 1e30f);
  kernels.silu_mul(gate.data(), up.data(), dim, y.data());
  for (const float value : y) EXPECT_EQ(value, 2e30f);
}

TEST_P(Rows, Rope) {
  const int rotary_dim = dim / 2 * 2, half = rotary_dim / 2;
  std::vector<float> table, head = x;
  for (int i = 0; i < half; ++i) table.push_back(std::cos(0.1f * i));
  for (int i = 0; i < half; ++i) table.push_back(std::sin(0.1f * i));
  std::vector<double> expected(x.begin(), x.end());
  for (int i = 0; i < half; ++i) {
    expected[i] = double{x[i]} * table[i] - double{x[i + half]} * table[half + i];
    expected[i + half] = double{x[i + half]} * table[i] + double{x[i]} * table[half + i];
  }
  kernels.rope(head.data(), table.data(), rotary_dim);
  for (int i = 0; i < dim; ++i) EXPECT_NEAR(head[i], expected[i], 2e-6);
}

class LogitPasses : public testing::TestWithParam<CpuIsa> {};

INSTANTIATE_TEST_SUITE_P(All, LogitPasses,
                         testing::ValuesIn(supported_base_isas().begin(), supported_base_isas().end()),
                         [](const auto& info) { return std::string(cpu_isa_label(info.param)); });

TEST_P(LogitPasses, WeightsAreExponentialsToTwoUnitsInTheLastPlace) {
  std::vector<float> x;
  for (int i = 0; i <= 86000; ++i) x.push_back(static_cast<float>(i) * -0.001f);
  std::vector<float> weights(x.size()), sums(num_logit_blocks(std::ssize(x)));
  cpu_kernels(GetParam()).logit_weights(x.data(), std::ssize(x), 0.0f, 1.0f, weights.data(), sums.data());
  EXPECT_EQ(weights[0], 1.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(double{x[i]});
    ASSERT_NEAR(weights[i] / expected, 1.0, 1.8e-7) << "exp(" << x[i] << ")";
  }
  double total = 0;
  for (const float sum : sums) total += sum;
  EXPECT_NEAR(total, 1 / (1 - std::exp(-0.001)), 1e-2);
}

TEST_P(LogitPasses, SkipWhatIsNotANumber) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x(130, nan), weights(130), sums(3), maxima(3);
  x[3] = -5.0f, x[4] = -infinity, x[129] = -4.0f, x[100] = -1e30f;
  const CpuKernels& kernels = cpu_kernels(GetParam());
  kernels.logit_block_max(x.data(), 130, maxima.data());
  EXPECT_EQ(maxima, (std::vector<float>{-5.0f, -1e30f, -4.0f}));
  kernels.logit_weights(x.data(), 130, -4.0f, 2.0f, weights.data(), sums.data());
  for (int i = 0; i < 130; ++i) {
    if (i == 3 || i == 129) continue;
    EXPECT_EQ(weights[i], 0.0f) << i;
  }
  EXPECT_NEAR(weights[3], std::exp(-2.0), 1e-6);
  EXPECT_EQ(weights[129], 1.0f);
  EXPECT_EQ(sums[1], 0.0f);
  EXPECT_EQ(sums[2], 1.0f);
}

TEST(Device, GiveTheSameBitsForAnyNumberOfRowsAndThreads) {
  const int rows = 61, heads = 5, kv_heads = 2, head_dim = 40, dim = (heads + 2 * kv_heads) * head_dim;
  const auto weight = random_floats(dim, 5), data = random_floats(rows * dim, 6);
  auto delta = random_floats(rows * dim, 7);
  std::vector<std::int32_t> positions;
  for (int row = 0; row < rows; ++row) positions.push_back(row * 7 % 90);
  const auto table = random_floats(90 * 24, 8);

  // All operations one after the other, `step` rows at a time.
  const auto run = [&](int num_threads, int step) {
    ThreadPool pool(num_threads);
    std::vector<float> residual = data, y(rows * dim), gated(rows * dim / 2);
    for (int row = 0; row < rows; row += step) {
      const int count = std::min(step, rows - row);
      const Norm norm{weight.data(), 1e-5f};
      const cpu_ops::NormRows out{count, dim, &y[row * dim]};
      cpu_ops::add_norm_rows(pool, &residual[row * dim], &delta[row * dim], {}, norm, out);
      cpu_ops::norm_rows(pool, &y[row * dim], norm, out);
      const cpu_ops::QkvView qkv = {&y[row * dim], count, heads, kv_heads, head_dim};
      cpu_ops::qk_norm(pool, qkv, weight.data(), weight.data() + head_dim, 1e-5f);
      cpu_ops::rope(pool, qkv, &positions[row], {table.data(), table.data()}, 24);
      cpu_ops::gate_rows(pool, Activation::silu, &y[row * dim], {count, dim / 2, &gated[row * dim / 2]});
    }
    y.insert(y.end(), residual.begin(), residual.end());
    y.insert(y.end(), gated.begin(), gated.end());
    return y;
  };
  const auto expected = run(1, 1);
  EXPECT_EQ(run(1, rows), expected);
  EXPECT_EQ(run(3, rows), expected);
  EXPECT_EQ(run(3, 50), expected);
}

TEST(Device, QkNormAndRopeLeaveValuesAlone) {
  ThreadPool pool(1);
  const int dim = 4 * 16;
  const auto original = random_floats(dim, 9), weight = random_floats(16, 10), table = random_floats(16, 11);
  auto data = original;
  const std::int32_t position = 0;
  cpu_ops::qk_norm(pool, {data.data(), 1, 2, 1, 16}, weight.data(), weight.data(), 1e-5f);
  cpu_ops::rope(pool, {data.data(), 1, 2, 1, 16}, &position, {table.data(), table.data()}, 8);
  for (int i = 0; i < 48; ++i) EXPECT_NE(data[i], original[i]) << i;
  for (int i = 48; i < 64; ++i) EXPECT_EQ(data[i], original[i]) << i;
}

TEST(Device, RopeRefusesARotationWiderThanTheHead) {
  ThreadPool pool(1);
  std::vector<float> data(3 * 16), table(32);
  const std::int32_t position = 0;
  EXPECT_THROW(cpu_ops::rope(pool, {data.data(), 1, 1, 1, 16}, &position, {table.data(), table.data()}, 18),
               CheckError);
  EXPECT_THROW(cpu_ops::rope(pool, {data.data(), 1, 1, 1, 16}, &position, {table.data(), table.data()}, 7), CheckError);
}

}  // namespace
}  // namespace minisgl
