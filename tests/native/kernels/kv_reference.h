// What a paged cache stores of a head, by its definition (KvLayer, step.h): slow and obvious.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "core/half.h"
#include "kernels/step.h"

namespace minisgl {

// The value of a byte of e4m3: 4 bits of exponent, biased by 7, 3 of mantissa; NaN has all bits set, nothing is
// infinite.
inline float e4m3_to_f32(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
  return static_cast<float>((byte & 128) != 0 ? -magnitude : magnitude);
}

// The byte nearest to a value of at most 448, the one with an even mantissa of two.
inline int f32_to_e4m3(float value) {
  int best = 0;
  for (int byte = 1; byte < 127; ++byte) {
    const double worse = std::abs(std::abs(double{value}) - e4m3_to_f32(best));
    const double now = std::abs(std::abs(double{value}) - e4m3_to_f32(byte));
    if (now < worse || (now == worse && byte % 2 == 0)) best = byte;
  }
  return std::signbit(value) ? best | 128 : best;
}

// A head as bytes and their scale.
struct ScaledHead {
  std::vector<std::uint8_t> bytes;
  float scale;
};

inline ScaledHead scaled_head(DType dtype, const float* head, int head_dim) {
  float most = 0;
  bool finite = true;
  for (int i = 0; i < head_dim; ++i) {
    finite = finite && std::isfinite(head[i]);
    most = std::max(most, std::abs(head[i]));
  }
  if (!finite) return {std::vector<std::uint8_t>(head_dim, 0xff), std::numeric_limits<float>::quiet_NaN()};
  const float quotient = most / kv_byte_max(dtype), scale = quotient > 0 ? quotient : 1;
  ScaledHead scaled{{}, scale};
  for (int i = 0; i < head_dim; ++i) {
    const float value = std::clamp(head[i] / scale, -kv_byte_max(dtype), kv_byte_max(dtype));
    scaled.bytes.push_back(
        static_cast<std::uint8_t>(dtype == DType::i8 ? static_cast<int>(std::nearbyint(value)) : f32_to_e4m3(value)));
  }
  return scaled;
}

inline float byte_value(DType dtype, std::uint8_t byte) {
  return dtype == DType::i8 ? static_cast<float>(static_cast<std::int8_t>(byte)) : e4m3_to_f32(byte);
}

// What is read back of a head that was stored in the cache.
inline std::vector<float> as_cached(DType dtype, const float* head, int head_dim) {
  std::vector<float> values(head, head + head_dim);
  if (has_kv_scales(dtype)) {
    const ScaledHead scaled = scaled_head(dtype, head, head_dim);
    for (int i = 0; i < head_dim; ++i) values[i] = byte_value(dtype, scaled.bytes[i]) * scaled.scale;
  }
  for (float& value : values) {
    if (dtype == DType::f16) value = f16_to_f32(f32_to_f16(value));
    if (dtype == DType::bf16) value = bf16_to_f32(f32_to_bf16(value));
  }
  return values;
}

}  // namespace minisgl
