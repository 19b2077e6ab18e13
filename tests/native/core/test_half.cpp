// f16 and bf16 conversions against their definition, at every finite half and half way between.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/half.h"

namespace minisgl {
namespace {

// The value of an f16 by its definition.
double f16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1f;
  const double fraction = bits & 0x3ff;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

TEST(Half, F16ToF32IsExact) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = f16_to_f32(half);
    if ((half & 0x7c00) != 0x7c00) {
      ASSERT_EQ(value, f16_value(half)) << bits;
      ASSERT_EQ(std::signbit(value), (half & 0x8000) != 0) << bits;
    } else if ((half & 0x3ff) == 0) {
      ASSERT_EQ(value,
                half & 0x8000 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity());
    } else {
      ASSERT_TRUE(std::isnan(value)) << bits;
    }
  }
}

TEST(Half, F32ToF16RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {  // each finite half, the next one, and the way between
    const auto half = static_cast<std::uint16_t>(bits);
    const auto next = static_cast<std::uint16_t>(bits + 1);
    const auto low = static_cast<float>(f16_value(half)), high = static_cast<float>(f16_value(next));
    const float middle = (low + high) / 2;  // exact in f32
    ASSERT_EQ(f32_to_f16(low), half);
    ASSERT_EQ(f32_to_f16(-low), half | 0x8000);
    ASSERT_EQ(f32_to_f16(middle), half % 2 == 0 ? half : next) << bits;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), half) << bits;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, high)), next) << bits;
  }
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_EQ(f32_to_f16(1e-10f), 0);
}

TEST(Half, Bf16RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const auto next = static_cast<std::uint16_t>(bits + 1);
    const auto middle = std::bit_cast<float>((bits << 16) + 0x8000u);
    ASSERT_EQ(f32_to_bf16(bf16_to_f32(half)), half);
    ASSERT_EQ(f32_to_bf16(middle), half % 2 == 0 ? half : next) << bits;
    ASSERT_EQ(f32_to_bf16(std::nextafter(middle, 0.0f)), half) << bits;
    ASSERT_EQ(f32_to_bf16(std::nextafter(-middle, -INFINITY)), next | 0x8000) << bits;
  }
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace minisgl
