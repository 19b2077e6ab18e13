// Rows of f16 and bf16 in and out, on every instruction set that this processor has.
#include <gtest/gtest.h>

#include <bit>
#include <tuple>

#include "core/error.h"
#include "core/half.h"
#include "gemm/dispatch.h"
#include "products.h"

namespace minisgl {
namespace {

std::uint16_t to_half(DType dtype, float value) {
  return dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
}

std::vector<std::uint16_t> to_halves(DType dtype, const std::vector<float>& values) {
  std::vector<std::uint16_t> halves;
  for (float value : values) halves.push_back(to_half(dtype, value));
  return halves;
}

std::vector<float> to_floats(DType dtype, const std::vector<std::uint16_t>& halves) {
  std::vector<float> values;
  for (std::uint16_t half : halves) values.push_back(dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half));
  return values;
}

// y as `y_dtype` stores it: [num_rows, outputs].
template <typename Y>
std::vector<Y> multiply(CpuIsa isa, const RandomMatrix& weight, const void* x, DType x_dtype, std::int64_t num_rows,
                        DType y_dtype, ThreadPool& pool, const float* bias = nullptr) {
  std::vector<Y> y(static_cast<std::size_t>(num_rows * weight.packed.rows()), Y(0x7fff));
  GemmWorkspace workspace;
  const GemmPart part{&weight.packed, bias, 0};
  gemm_with(gemm_kernel_table(isa),
            {.parts = {&part, 1},
             .x = x,
             .num_rows = num_rows,
             .y = y.data(),
             .y_stride = weight.packed.rows(),
             .x_dtype = x_dtype,
             .y_dtype = y_dtype},
            workspace, pool);
  return y;
}

using Case = std::tuple<CpuIsa, DType, DType>;  // weights, rows

class HalfRows : public testing::TestWithParam<Case> {
 protected:
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  DType weight_dtype() const { return std::get<1>(GetParam()); }
  DType row_dtype() const { return std::get<2>(GetParam()); }
};

TEST_P(HalfRows, AgreeWithTheReference) {
  ThreadPool pool(2);
  const bool quantized = is_quantized(weight_dtype());
  for (std::int64_t cols :
       quantized ? std::vector<std::int64_t>{256, 512} : std::vector<std::int64_t>{1, 7, 64, 1155}) {
    for (std::int64_t outputs : {1, 9, 16, 50}) {
      const RandomMatrix weight(weight_dtype(), outputs, cols, pool);
      const std::vector<double> weights = weight.values();
      const std::vector<float> bias = random_activations(outputs, 3);
      for (std::int64_t rows : {1, 2, 3, 5, 8, 17, 70}) {
        const std::vector<std::uint16_t> x = to_halves(row_dtype(), random_activations(rows * cols, 2));
        const std::vector<float> values = to_floats(row_dtype(), x);
        const std::vector<float> used_bias = rows % 2 == 0 ? bias : std::vector<float>();
        const std::vector<float> y = multiply<float>(isa(), weight, x.data(), row_dtype(), rows, DType::f32, pool,
                                                     used_bias.empty() ? nullptr : used_bias.data());
        expect_product(y, {values.begin(), values.end()}, weights, outputs, cols, used_bias, quantized ? 1e-2 : 1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// f32 sums, rounded once.
TEST_P(HalfRows, AreRoundedToNearest) {
  ThreadPool pool(2);
  const std::int64_t cols = 256, outputs = 131;
  const RandomMatrix weight(weight_dtype(), outputs, cols, pool);
  for (std::int64_t rows : {1, 3, 17}) {
    const std::vector<std::uint16_t> x = to_halves(row_dtype(), random_activations(rows * cols, 4));
    const std::vector<float> y = multiply<float>(isa(), weight, x.data(), row_dtype(), rows, DType::f32, pool);
    for (DType y_dtype : {DType::f16, DType::bf16}) {
      EXPECT_EQ(to_halves(y_dtype, y),
                multiply<std::uint16_t>(isa(), weight, x.data(), row_dtype(), rows, y_dtype, pool));
    }
  }
}

TEST_P(HalfRows, ARowsBitsDependOnNothingBesideIt) {
  const std::int64_t cols = is_quantized(weight_dtype()) ? 512 : 2051;  // several blocks of columns
  const std::int64_t outputs = 179, rows = 71;
  ThreadPool one(1), two(2), three(3);
  const RandomMatrix weight(weight_dtype(), outputs, cols, two);
  const std::vector<std::uint16_t> x = to_halves(row_dtype(), random_activations(rows * cols, 5));
  const auto product = [&](std::int64_t first, std::int64_t count, ThreadPool& pool) {
    return multiply<std::uint16_t>(isa(), weight, x.data() + first * cols, row_dtype(), count, row_dtype(), pool);
  };
  const std::vector<std::uint16_t> batch = product(0, rows, one);
  EXPECT_EQ(batch, product(0, rows, three));
  for (std::int64_t count = 1; count < rows; ++count) {  // the last `count` rows alone
    const std::vector<std::uint16_t> alone = product(rows - count, count, count % 2 == 0 ? three : two);
    ASSERT_EQ(alone, std::vector<std::uint16_t>(batch.end() - count * outputs, batch.end())) << count << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, HalfRows,
                         testing::Combine(testing::ValuesIn(isas()),
                                          testing::Values(DType::f32, DType::f16, DType::bf16, DType::q4_k),
                                          testing::Values(DType::f16, DType::bf16)),
                         [](const testing::TestParamInfo<Case>& info) {
                           return std::string(cpu_isa_label(std::get<0>(info.param))) + "_" +
                                  std::string(dtype_info(std::get<1>(info.param)).name) + "_by_" +
                                  std::string(dtype_info(std::get<2>(info.param)).name);
                         });

// Infinities and values that are no numbers come out as such.
TEST(HalfRowsLimits, InfinityAndNanAreKept) {
  ThreadPool pool(1);
  const RandomMatrix weight(DType::bf16, 40, 64, pool);
  for (CpuIsa isa : isas()) {
    for (float special : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> values = random_activations(3 * 64, 6);
      values[64 + 5] = special;
      const std::vector<std::uint16_t> x = to_halves(DType::bf16, values);
      const std::vector<float> y =
          to_floats(DType::bf16, multiply<std::uint16_t>(isa, weight, x.data(), DType::bf16, 3, DType::bf16, pool));
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (i / 40 != 1) {
          EXPECT_TRUE(std::isfinite(y[i]));
        } else if (std::isnan(special)) {
          EXPECT_TRUE(std::isnan(y[i]));
        } else {
          EXPECT_TRUE(std::isinf(y[i]));
        }
      }
    }
  }
}

TEST(HalfRowsLimits, BlockFormatsAreNoRows) {
  ThreadPool pool(1);
  const RandomMatrix weight(DType::bf16, 8, 32, pool);
  const std::vector<float> x(32);
  EXPECT_THROW(multiply<float>(cpu_isa(), weight, x.data(), DType::q8_0, 1, DType::f32, pool), CheckError);
  EXPECT_THROW(multiply<float>(cpu_isa(), weight, x.data(), DType::f32, 1, DType::q8_0, pool), CheckError);
}

}  // namespace
}  // namespace minisgl
