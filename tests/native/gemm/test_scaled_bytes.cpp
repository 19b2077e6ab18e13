// Bytes of e4m3 by their definition, and times scales of every shape of block.
#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "core/half.h"
#include "gemm/scaled_bytes.h"

namespace minisgl {
namespace {

TEST(ScaledBytes, ValuesAreTheFormats) {
  for (int byte = 0; byte < 256; ++byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const float value = e4m3_to_f32(static_cast<std::uint8_t>(byte));
    if ((byte & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, byte >= 128 ? -magnitude : magnitude) << byte;
      EXPECT_EQ(std::signbit(value), byte >= 128);
    }
  }
}

TEST(ScaledBytes, EachBlockHasItsScale) {
  ThreadPool pool(2);
  const std::int64_t rows = 7, cols = 10;
  std::vector<std::byte> raw;
  for (std::int64_t i = 0; i < rows * cols; ++i) raw.push_back(static_cast<std::byte>(i));
  const std::vector<std::pair<std::int64_t, std::int64_t>> blocks{{1, 10}, {7, 10}, {3, 4}, {2, 5}, {100, 3}};
  for (const auto& [block_rows, block_cols] : blocks) {
    ScaleGrid scales{block_rows, block_cols, {}};
    const std::int64_t across = (cols + block_cols - 1) / block_cols, down = (rows + block_rows - 1) / block_rows;
    for (std::int64_t i = 0; i < across * down; ++i) scales.values.push_back(0.25f + 0.3f * static_cast<float>(i));
    const auto wide = widen_e4m3(raw, rows, cols, scales, pool);
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const auto scale =
          scales.values[static_cast<std::size_t>(i / cols / block_rows * across + i % cols / block_cols)];
      EXPECT_EQ(wide[static_cast<std::size_t>(i)], f32_to_bf16(e4m3_to_f32(static_cast<std::uint8_t>(i)) * scale)) << i;
    }
  }
}

}  // namespace
}  // namespace minisgl
