// The loops of the tile kernel, on tile registers that are computed here: the same on a processor without them.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/half.h"
#include "gemm/block_codec.h"
#include "gemm/cpu/amx/bf16_rows.h"
#include "gemm/products.h"

namespace minisgl {
namespace {

// As the processor's manual has them: in each instruction the even and the odd columns are summed apart, from zero.
struct ComputedTiles {
  static inline int rows = 0;  // of registers 0 to 5; 0: not configured
  static inline float registers[8][16][16];

  static int height(int tile) { return tile < 6 ? rows : 16; }

  static void configure(int wanted) {
    ASSERT_GE(wanted, 1);
    ASSERT_LE(wanted, 16);
    rows = wanted;
    std::memset(registers, 0, sizeof(registers));
  }
  static void release() { rows = 0; }

  template <int tile>
  static void load(const void* from, std::int64_t stride) {
    ASSERT_GT(rows, 0);
    for (int r = 0; r < height(tile); ++r)
      std::memcpy(registers[tile][r], static_cast<const std::byte*>(from) + r * stride, 64);
  }
  template <int tile>
  static void store(void* to, std::int64_t stride) {
    ASSERT_GT(rows, 0);
    for (int r = 0; r < height(tile); ++r)
      std::memcpy(static_cast<std::byte*>(to) + r * stride, registers[tile][r], 64);
  }

  static float half(int tile, int row, int index) {
    std::uint16_t value;
    std::memcpy(&value, reinterpret_cast<const std::byte*>(registers[tile][row]) + 2 * index, sizeof(value));
    return bf16_to_f32(value);
  }
  template <int sums, int activations, int weights>
  static void multiply() {
    for (int r = 0; r < rows; ++r) {
      for (int output = 0; output < 16; ++output) {
        float parts[2] = {};
        for (int pair = 0; pair < 16; ++pair)
          for (int i = 0; i < 2; ++i)
            parts[i] = std::fma(half(activations, r, 2 * pair + i), half(weights, pair, 2 * output + i), parts[i]);
        registers[sums][r][output] += parts[0] + parts[1];
      }
    }
  }
};

// [num_rows, outputs] f32; what lies beside it must stay as it is.
std::vector<float> multiply(const PackedMatrix& weight, const std::uint16_t* x, std::int64_t num_rows,
                            const float* bias) {
  const std::int64_t stride = weight.rows() + 3;
  std::vector<float> y(static_cast<std::size_t>(num_rows * stride), 1234.0f), result;
  amx::Bf16Rows<ComputedTiles>::run({.weights = weight.data(),
                                     .cols = weight.cols(),
                                     .num_outputs = weight.rows(),
                                     .bias = bias,
                                     .activations = reinterpret_cast<const std::byte*>(x),
                                     .activation_stride = weight.cols() * 2,
                                     .num_rows = num_rows,
                                     .y = y.data(),
                                     .y_stride = stride});
  EXPECT_EQ(ComputedTiles::rows, 0) << "the registers were not given back";
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto first = y.begin() + row * stride;
    result.insert(result.end(), first, first + weight.rows());
    EXPECT_EQ(std::vector<float>(first + weight.rows(), first + stride), std::vector<float>(3, 1234.0f));
  }
  return result;
}

TEST(Tiles, AgreeWithTheReferenceAndRowsDependOnNothingBesideThem) {
  ThreadPool pool(2);
  for (std::int64_t cols : {1, 31, 32, 33, 96, 2051}) {
    for (std::int64_t outputs : {1, 16, 17, 50, 131}) {
      const RandomMatrix weight(DType::bf16, outputs, cols, pool);
      const std::vector<double> weights = weight.values();
      const std::vector<float> bias = random_activations(outputs, 3);
      const std::int64_t most = 70;
      std::vector<std::uint16_t> x;
      std::vector<double> exact;
      for (float value : random_activations(most * cols, 2)) {
        x.push_back(f32_to_bf16(value));
        exact.push_back(static_cast<double>(bf16_to_f32(x.back())));
      }
      const std::vector<float> all = multiply(weight.packed, x.data(), most, bias.data());
      expect_product(all, exact, weights, outputs, cols, bias, 1e-5);
      for (std::int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65}) {
        const std::vector<float> some = multiply(weight.packed, x.data() + (most - rows) * cols, rows, bias.data());
        ASSERT_EQ(some, std::vector<float>(all.end() - rows * outputs, all.end()))
            << rows << " rows, " << outputs << " outputs, " << cols << " columns";
      }
    }
  }
}

}  // namespace
}  // namespace minisgl
