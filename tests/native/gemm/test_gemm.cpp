// Every format, on every instruction set that this processor has, against the product in double; and the same bits for
// a row whatever is computed beside it.
#include <gtest/gtest.h>

#include <tuple>

#include "core/error.h"
#include "gemm/dispatch.h"
#include "gemm/gemm.h"
#include "products.h"

namespace minisgl {
namespace {

std::vector<float> multiply(CpuIsa isa, const RandomMatrix& weight, const float* x, std::int64_t num_rows,
                            ThreadPool& pool, const float* bias = nullptr) {
  std::vector<float> y(static_cast<std::size_t>(num_rows * weight.packed.rows()), NAN);
  GemmWorkspace workspace;
  const GemmPart part{&weight.packed, bias, 0};
  gemm_with(gemm_kernel_table(isa), {{&part, 1}, x, num_rows, y.data(), weight.packed.rows()}, workspace, pool);
  return y;
}

using Case = std::tuple<CpuIsa, DType>;

class GemmTest : public testing::TestWithParam<Case> {
 protected:
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  // Column counts that are no multiple of any tile, as far as the format allows.
  std::vector<std::int64_t> column_counts() const {
    const std::int64_t block = dtype_info(dtype()).block_size;
    if (block == 1) return {1, 3, 65, 130};
    return {block, 3 * block, 5 * block};
  }
};

TEST_P(GemmTest, AgreesWithTheReference) {
  ThreadPool pool(2);
  for (std::int64_t cols : column_counts()) {
    for (std::int64_t outputs : {1, 8, 9, 31, 70}) {
      const RandomMatrix weight(dtype(), outputs, cols, pool);
      const std::vector<double> weights = weight.values();
      const std::vector<float> bias = random_activations(outputs, 3);
      for (std::int64_t rows : {1, 2, 3, 4, 5, 8, 13, 70}) {
        const std::vector<float> x = random_activations(rows * cols, 2);
        const std::vector<double> exact(x.begin(), x.end());
        const std::vector<float> used_bias = rows % 2 == 0 ? bias : std::vector<float>();
        const std::vector<float> y =
            multiply(isa(), weight, x.data(), rows, pool, used_bias.empty() ? nullptr : used_bias.data());
        expect_product(y, exact, weights, outputs, cols, used_bias, is_quantized(dtype()) ? 1e-2 : 1e-5);
        if (is_quantized(dtype())) expect_product(y, reference::quantized(x), weights, outputs, cols, used_bias, 1e-5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(GemmTest, ARowsBitsDependOnNothingBesideIt) {
  const std::int64_t cols = is_quantized(dtype()) ? 512 : 257;
  const std::int64_t outputs = 339, rows = 71;
  ThreadPool one(1), two(2), three(3);
  const RandomMatrix weight(dtype(), outputs, cols, two);
  const std::vector<float> x = random_activations(rows * cols, 4);
  const std::vector<float> batch = multiply(isa(), weight, x.data(), rows, one);
  EXPECT_EQ(batch, multiply(isa(), weight, x.data(), rows, two));
  EXPECT_EQ(batch, multiply(isa(), weight, x.data(), rows, three));
  for (std::int64_t count : {1, 2, 3, 5, 8, 31}) {  // the batch in pieces of `count` rows
    std::vector<float> pieces;
    for (std::int64_t row = 0; row < rows; row += count) {
      const std::vector<float> y =
          multiply(isa(), weight, x.data() + row * cols, std::min(count, rows - row), count % 2 == 0 ? three : two);
      pieces.insert(pieces.end(), y.begin(), y.end());
    }
    EXPECT_EQ(batch, pieces) << count << " rows at a time";
  }
}

// The worst that the integer sums can meet: all weights and all activations at their limits.
TEST_P(GemmTest, LargestValuesDoNotOverflow) {
  if (!is_quantized(dtype())) GTEST_SKIP();
  const std::int64_t cols = 512, outputs = 8;
  ThreadPool pool(1);
  for (int byte : {0x00, 0x7f, 0x80, 0xff}) {
    std::vector<std::uint8_t> file = reference::random_weights(dtype(), outputs, cols, 5);
    const auto block_bytes = static_cast<std::size_t>(dtype_info(dtype()).block_bytes);
    for (std::size_t i = 0; i < file.size(); ++i) {
      if (!reference::is_scale(dtype(), i % block_bytes)) file[i] = static_cast<std::uint8_t>(byte);
    }
    const PackedMatrix packed = PackedMatrix::pack(dtype(), outputs, cols, std::as_bytes(std::span(file)), pool);
    const std::vector<double> weights = reference::values(dtype(), file, outputs, cols);
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(static_cast<std::size_t>(4 * cols), sign);
      std::vector<float> y(4 * outputs);
      GemmWorkspace workspace;
      const GemmPart part{&packed, nullptr, 0};
      gemm_with(gemm_kernel_table(isa()), {{&part, 1}, x.data(), 4, y.data(), outputs}, workspace, pool);
      expect_product(y, std::vector<double>(x.begin(), x.end()), weights, outputs, cols, {}, 1e-5);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, GemmTest, testing::Combine(testing::ValuesIn(isas()), testing::ValuesIn(all_dtypes)),
                         [](const testing::TestParamInfo<Case>& info) {
                           return std::string(cpu_isa_label(std::get<0>(info.param))) + "_" +
                                  std::string(dtype_info(std::get<1>(info.param)).name);
                         });

// Parts of several formats side by side in a wider y, what lies between them untouched.
TEST(Gemm, MergedPartsWriteTheirOwnColumns) {
  ThreadPool pool(2);
  const RandomMatrix first(DType::q4_1, 24, 256, pool, 1), second(DType::q8_0, 9, 256, pool, 2),
      third(DType::f32, 3, 256, pool, 3);
  const std::vector<float> bias = random_activations(9, 4);
  const std::int64_t stride = 50;
  for (std::int64_t rows : {1, 6}) {
    const std::vector<float> x = random_activations(rows * 256, 5);
    std::vector<float> y(static_cast<std::size_t>(rows * stride), 1234.0f);
    const GemmPart parts[] = {
        {&first.packed, nullptr, 0}, {&second.packed, bias.data(), 24}, {&third.packed, nullptr, 40}};
    GemmWorkspace workspace;
    gemm({parts, x.data(), rows, y.data(), stride}, workspace, pool);
    const std::vector<float> expected[] = {multiply(cpu_isa(), first, x.data(), rows, pool),
                                           multiply(cpu_isa(), second, x.data(), rows, pool, bias.data()),
                                           multiply(cpu_isa(), third, x.data(), rows, pool)};
    for (std::int64_t r = 0; r < rows; ++r) {
      std::vector<float> row(static_cast<std::size_t>(stride), 1234.0f);
      for (int i = 0; i < 3; ++i) {
        const std::int64_t outputs = parts[i].weight->rows();
        std::copy_n(expected[i].begin() + r * outputs, outputs, row.begin() + parts[i].column);
      }
      EXPECT_EQ(std::vector<float>(y.begin() + r * stride, y.begin() + (r + 1) * stride), row);
    }
  }
}

TEST(Gemm, ZeroRowsDoNothing) {
  ThreadPool pool(2);
  const RandomMatrix weight(DType::q4_0, 8, 32, pool);
  EXPECT_TRUE(multiply(cpu_isa(), weight, nullptr, 0, pool).empty());
}

TEST(Gemm, PartsMustReadTheSameFeatures) {
  ThreadPool pool(1);
  const RandomMatrix a(DType::f32, 4, 64, pool), b(DType::f32, 4, 32, pool);
  const std::vector<float> x(64);
  std::vector<float> y(8);
  const GemmPart parts[] = {{&a.packed, nullptr, 0}, {&b.packed, nullptr, 4}};
  GemmWorkspace workspace;
  EXPECT_THROW(gemm({parts, x.data(), 1, y.data(), 8}, workspace, pool), CheckError);
}

// Activations of zeros, tiny and huge values leave finite results where the true ones are.
TEST(Gemm, ExtremeActivations) {
  ThreadPool pool(1);
  const RandomMatrix weight(DType::q4_0, 8, 64, pool);
  const std::vector<double> weights = weight.values();
  for (float size : {0.0f, 1e-44f, 1e-38f, 1e-30f, 1e30f}) {
    std::vector<float> x = random_activations(64, 6);
    for (float& value : x) value *= size;
    const std::vector<double> exact(x.begin(), x.end());
    for (CpuIsa isa : isas()) {
      const std::vector<float> y = multiply(isa, weight, x.data(), 1, pool);
      if (size >= 1e-30f || size == 0.0f) expect_product(y, exact, weights, 8, 64, {}, 1e-2);
      for (float value : y) EXPECT_LE(std::fabs(value), size * 1e3f);
    }
  }
}

}  // namespace
}  // namespace minisgl
