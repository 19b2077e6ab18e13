// Slow and obvious: random stored weights, their values by the definition of each format, and the product in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "core/dtype.h"

namespace minisgl::reference {

inline double f16_value(const std::uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Whether byte `at` of a block belongs to an f16 scale, or to mxfp4's exponent.
inline bool is_scale(DType dtype, std::size_t at) {
  switch (dtype) {
    case DType::q4_1:
    case DType::q5_1:
    case DType::q4_k:
    case DType::q5_k: return at < 4;
    case DType::q2_k: return at >= 80;
    case DType::q3_k: return at >= 108;
    case DType::q6_k: return at >= 208;
    case DType::mxfp4: return at < 1;
    default: return is_quantized(dtype) && at < 2;
  }
}

// Random bytes, except that the f16 scales are between 2^-9 and 2^-7 and of either sign, and floats are in (-2, 2).
inline std::vector<std::uint8_t> random_weights(DType dtype, std::int64_t rows, std::int64_t cols, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * row_bytes(dtype, cols)));
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  const auto put_f16 = [&](std::uint8_t* p) {
    const unsigned bits = (random() & 0x8000) | 0x1800 | (random() & 0x7ff);
    p[0] = static_cast<std::uint8_t>(bits);
    p[1] = static_cast<std::uint8_t>(bits >> 8);
  };
  const auto block_bytes = static_cast<std::size_t>(dtype_info(dtype).block_bytes);
  for (std::size_t at = 0; at < bytes.size(); at += block_bytes) {
    std::uint8_t* block = bytes.data() + at;
    switch (dtype) {
      case DType::f32: {
        const float value = std::uniform_real_distribution<float>(-2, 2)(random);
        std::memcpy(block, &value, 4);
        break;
      }
      case DType::f16: block[1] = static_cast<std::uint8_t>((block[1] & 0x83) | (random() % 16) << 2); break;
      case DType::bf16: block[1] = static_cast<std::uint8_t>((block[1] & 0x80) | 0x3f); break;
      case DType::int4_64:
      case DType::int4_128:
        put_f16(block);
        block[2] = 0;
        block[3] = static_cast<std::uint8_t>(0x3c + 4 * (random() % 4));  // 1, 2, 4 or 8
        break;
      case DType::mxfp4: block[0] = static_cast<std::uint8_t>(120 + random() % 12); break;
      default:
        for (std::size_t i = 0; i < block_bytes; ++i)
          if (is_scale(dtype, i) && i % 2 == 0) put_f16(block + i);
    }
  }
  return bytes;
}

inline constexpr int iq4_value[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
inline constexpr double e2m1_value[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

inline int nibble(const std::uint8_t* p, int k) {  // 16 bytes: elements 0 to 15 low, 16 to 31 high
  return k < 16 ? p[k] & 15 : p[k - 16] >> 4;
}
inline int bit(const std::uint8_t* p, int k) {
  return p[k / 8] >> k % 8 & 1;
}
inline int bit_pair(const std::uint8_t* p, int k) {  // byte l of 32: elements l, l + 32, l + 64, l + 96 of 128
  return p[32 * (k / 128) + k % 32] >> 2 * (k % 128 / 32) & 3;
}
// The 6-bit scale and minimum of a run of 32, out of 12 bytes.
inline std::pair<int, int> k_scale_and_minimum(const std::uint8_t* s, int run) {
  if (run < 4) return {s[run] & 63, s[run + 4] & 63};
  return {(s[run + 4] & 15) | (s[run - 4] >> 6) << 4, s[run + 4] >> 4 | (s[run] >> 6) << 4};
}

// Element `i` of a stored row, by the definition of its format.
inline double value(DType dtype, const std::uint8_t* row, std::int64_t i) {
  const DTypeInfo info = dtype_info(dtype);
  const std::uint8_t* b = row + i / info.block_size * info.block_bytes;
  const int k = static_cast<int>(i % info.block_size);
  switch (dtype) {
    case DType::f32: {
      float result;
      std::memcpy(&result, b, 4);
      return result;
    }
    case DType::f16: return f16_value(b);
    case DType::bf16: {
      const std::uint8_t wide[4] = {0, 0, b[0], b[1]};
      float result;
      std::memcpy(&result, wide, 4);
      return result;
    }
    case DType::q8_0: return f16_value(b) * static_cast<std::int8_t>(b[2 + k]);
    case DType::q4_0: return f16_value(b) * (nibble(b + 2, k) - 8);
    case DType::q4_1: return f16_value(b) * nibble(b + 4, k) + f16_value(b + 2);
    case DType::q4_k: {
      const int run = k / 32;
      const auto [scale, minimum] = k_scale_and_minimum(b + 4, run);
      const std::uint8_t byte = b[16 + 32 * (run / 2) + k % 32];
      return f16_value(b) * scale * (run % 2 == 0 ? byte & 15 : byte >> 4) - f16_value(b + 2) * minimum;
    }
    case DType::q6_k: {
      const int half = k / 128, l = k % 32, quarter = k % 128 / 32;
      const std::uint8_t low = b[64 * half + 32 * (quarter % 2) + l];
      const int q = (quarter < 2 ? low & 15 : low >> 4) | (b[128 + 32 * half + l] >> 2 * quarter & 3) << 4;
      return f16_value(b + 208) * static_cast<std::int8_t>(b[192 + k / 16]) * (q - 32);
    }
    case DType::q5_0: return f16_value(b) * (nibble(b + 6, k) + 16 * bit(b + 2, k) - 16);
    case DType::q5_1: return f16_value(b) * (nibble(b + 8, k) + 16 * bit(b + 4, k)) + f16_value(b + 2);
    case DType::q5_k: {
      const auto [scale, minimum] = k_scale_and_minimum(b + 4, k / 32);
      const std::uint8_t byte = b[48 + 32 * (k / 64) + k % 32];
      const int q = (k / 32 % 2 == 0 ? byte & 15 : byte >> 4) + 16 * bit(b + 16 + k % 32, k / 32);
      return f16_value(b) * scale * q - f16_value(b + 2) * minimum;
    }
    case DType::q2_k:
      return f16_value(b + 80) * (b[k / 16] & 15) * bit_pair(b + 16, k) - f16_value(b + 82) * (b[k / 16] >> 4);
    case DType::q3_k: {
      const int run = k / 16;
      const std::uint8_t* s = b + 96;
      const int scale = (run < 8 ? s[run] & 15 : s[run - 8] >> 4) + 16 * (s[8 + run % 4] >> 2 * (run / 4) & 3) - 32;
      return f16_value(b + 108) * scale * (bit_pair(b + 32, k) + 4 * bit(b + k % 32, k / 32) - 4);
    }
    case DType::iq4_nl: return f16_value(b) * iq4_value[nibble(b + 2, k)];
    case DType::iq4_xs: {
      const int run = k / 32, high = (b[2] | b[3] << 8) >> 2 * run & 3;
      const int scale = (b[4 + run / 2] >> 4 * (run % 2) & 15) + 16 * high - 32;
      return f16_value(b) * scale * iq4_value[nibble(b + 8 + 16 * run, k % 32)];
    }
    case DType::int4_64:
    case DType::int4_128: return f16_value(b) * ((b[4 + k / 2] >> 4 * (k % 2) & 15) - f16_value(b + 2));
    case DType::mxfp4: return std::ldexp(e2m1_value[nibble(b + 1, k)], b[0] - 127);
  }
  return 0;
}

// [rows, cols] in double.
inline std::vector<double> values(DType dtype, const std::vector<std::uint8_t>& bytes, std::int64_t rows,
                                  std::int64_t cols) {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t col = 0; col < cols; ++col)
      result.push_back(value(dtype, bytes.data() + row * row_bytes(dtype, cols), col));
  return result;
}

// x as the quantised formats see it: int8 in blocks of 32, scale = max / 127.
inline std::vector<double> quantized(const std::vector<float>& x) {
  std::vector<double> result(x.size());
  for (std::size_t block = 0; block < x.size(); block += 32) {
    float top = 0;
    for (std::size_t i = block; i < block + 32; ++i) top = std::fmax(top, std::fabs(x[i]));
    if (top == 0) continue;
    for (std::size_t i = block; i < block + 32; ++i)
      result[i] = std::nearbyint(x[i] * (127.0f / top)) * static_cast<double>(top / 127.0f);
  }
  return result;
}

}  // namespace minisgl::reference
