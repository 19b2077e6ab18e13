// Matrices of e4m3 bytes with scales beside them, as files of FP8 weights have them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/thread_pool.h"

namespace minisgl {

// A byte's value: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa; one NaN, no infinity.
constexpr float e4m3_to_f32(std::uint8_t byte) {
  const std::uint32_t sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
  std::uint32_t bits;
  if (magnitude == 0x7fu) {
    bits = 0x7fc00000u;
  } else if (magnitude >= 0x08u) {
    bits = (magnitude << 20) + ((127u - 7u) << 23);
  } else {  // zero and subnormals
    bits = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-9f);
  }
  return std::bit_cast<float>(sign | bits);
}

// What the values of a matrix are multiplied by: one number for each block of rows and columns, the last ones cut off
// by the matrix's end. A block of one row and all columns: a scale for each output feature.
struct ScaleGrid {
  std::int64_t block_rows = 1, block_cols = 1;
  std::vector<float> values;  // [rows / block_rows, cols / block_cols], rounded up
};

// The values times their scales, as bf16 [rows, cols].
std::vector<std::uint16_t> widen_e4m3(std::span<const std::byte> raw, std::int64_t rows, std::int64_t cols,
                                      const ScaleGrid& scales, ThreadPool& pool);

}  // namespace minisgl
