// What the tests of products share: random operands, and the product in double to hold a result against.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "gemm/packed_matrix.h"
#include "reference.h"

namespace minisgl {

inline std::vector<CpuIsa> isas() {
  const auto supported = supported_cpu_isas();
  return {supported.begin(), supported.end()};
}

inline std::vector<float> random_activations(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& value : x) value = normal(random);
  return x;
}

struct RandomMatrix {
  RandomMatrix(DType dtype, std::int64_t rows, std::int64_t cols, ThreadPool& pool, unsigned seed = 1)
      : file(reference::random_weights(dtype, rows, cols, seed)),
        packed(PackedMatrix::pack(dtype, rows, cols, std::as_bytes(std::span(file)), pool)) {}
  std::vector<double> values() const { return reference::values(packed.dtype(), file, packed.rows(), packed.cols()); }
  std::vector<std::uint8_t> file;
  PackedMatrix packed;
};

// |y - reference| is held against the sum of the absolute values of the terms: `tolerance` times it.
inline void expect_product(const std::vector<float>& y, const std::vector<double>& x,
                           const std::vector<double>& weights, std::int64_t outputs, std::int64_t cols,
                           const std::vector<float>& bias, double tolerance) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / cols;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<std::size_t>(o)]), size = std::fabs(sum);
      for (std::int64_t c = 0; c < cols; ++c) {
        const double term = x[static_cast<std::size_t>(r * cols + c)] * weights[static_cast<std::size_t>(o * cols + c)];
        sum += term;
        size += std::fabs(term);
      }
      ASSERT_NEAR(y[static_cast<std::size_t>(r * outputs + o)], sum, tolerance * size + 1e-30)
          << "row " << r << " of " << rows << ", output " << o << " of " << outputs << ", " << cols << " columns";
    }
  }
}

}  // namespace minisgl
