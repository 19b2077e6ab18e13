// The packed layouts: what PackedMatrix writes and the kernels read. Constants and plain structs only, because kernel
// files of every instruction set include it (core/simd.h).
//
// Output rows are taken 8 at a time, a group; rows past the last are zeros. A group is contiguous and holds its blocks
// in the order of the input dimension, so that a kernel with one output row a lane reads memory in one direction. A
// "quad vector" is 32 bytes: for each of the 8 rows, 4 consecutive elements of the input dimension.
//
//   f32, f16, bf16   for each input column: 8 values
//   q8_0             for each 32 columns: 8 quad vectors of q + 128; f16 d[8]
//   q4_0             for each 32 columns: 4 quad vectors of nibbles; f16 d[8]
//   q4_1             for each 32 columns: 4 quad vectors of nibbles; f16 d[8]; f16 m[8]
//   q4_k             for each 256 columns: f16 d[8]; f16 dmin[8]; for each 32 columns: 4 quad vectors of nibbles;
//                    u8 scale[8]; u8 min[8] (the 6-bit values)
//   q6_k             for each 256 columns: f16 d[8]; for each 32 columns: 4 quad vectors of nibbles, the low 4 bits;
//                    2 quad vectors of 2-bit fields, the high bits; i8 scale[8][2], one for each 16 columns
// Quad vector j of nibbles holds quad j in the low and quad j + 4 in the high nibbles. Quad vector j of 2-bit fields
// holds quad 4 * j + i at bit 2 * i.
#pragma once

#include <cstdint>

namespace minisgl {

constexpr int group_rows = 8;

constexpr int nibble_bytes = 128;  // 32 columns of a group in 4 bits

constexpr int q8_0_block_bytes = 256 + 16;
constexpr int q4_0_block_bytes = nibble_bytes + 16;
constexpr int q4_1_block_bytes = nibble_bytes + 32;
constexpr int q4_k_part_bytes = nibble_bytes + 16;
constexpr int q4_k_block_bytes = 32 + 8 * q4_k_part_bytes;
constexpr int q6_k_part_bytes = nibble_bytes + 64 + 16;
constexpr int q6_k_block_bytes = 16 + 8 * q6_k_part_bytes;

// 32 activations of a row: x = q * scale, |q| <= 127.
struct ActivationBlock {
  std::int8_t q[32];
  float scale;
  float scaled_sum;        // scale * sum
  std::int16_t sums16[2];  // the sums of q[0, 16) and q[16, 32)
  std::int32_t sum;        // the sum of all q
};

}  // namespace minisgl
