// The packed layouts: what PackedMatrix writes and the kernels read. Constants and plain structs only, because kernel
// files of every instruction set include it (core/simd.h).
//
// Output rows are taken 8 at a time, a group; rows past the last are zeros. A group is contiguous and holds its blocks
// in the order of the input dimension, so that a kernel with one output row a lane reads memory in one direction. A
// "quad vector" is 32 bytes: for each of the 8 rows, 4 consecutive elements of the input dimension.
//
//   f32, f16   for each input column: 8 values
//
// bf16 takes 16 output rows at a time, two groups, the last of which may be nothing but zeros: for each two input
// columns, 16 pairs of values, one pair per output row. An odd last column stands beside zeros.
//
// 32 columns of a quantised format are a "part": quad vectors of the low bits of q, then of the high bits where there
// are some, then scales and minimums of the part.
//
//            low bits      high bits     behind them
//   q8_0     8 x 8 bits                  f16 d[8]                   q + 128
//   q4_0     4 x nibbles                 f16 d[8]
//   q4_1     4 x nibbles                 f16 d[8]; f16 m[8]
//   q5_0     4 x nibbles   1 x 1 bit     f16 d[8]
//   q5_1     4 x nibbles   1 x 1 bit     f16 d[8]; f16 m[8]
//   iq4_nl   4 x nibbles                 f16 d[8]                   nibbles are places in iq4_values
//   mxfp4    4 x nibbles                 bf16 d[8]                  nibbles are places in mxfp4_values
//
// Formats with blocks of 256 columns have f16 d[8], and for q2_k, q4_k and q5_k f16 dmin[8], then 8 parts:
//
//   q2_k     2 x 2 bits                  u8 [8][2]                  for each 16 columns: scale low, minimum high nibble
//   q3_k     2 x 2 bits    1 x 1 bit     i8 scale[8][2]             one for each 16 columns
//   q4_k     4 x nibbles                 u8 scale[8]; u8 min[8]     the 6-bit values
//   q5_k     4 x nibbles   1 x 1 bit     u8 scale[8]; u8 min[8]     the 6-bit values
//   q6_k     4 x nibbles   2 x 2 bits    i8 scale[8][2]             one for each 16 columns
//   iq4_xs   4 x nibbles                 i8 scale[8]                nibbles are places in iq4_values
//
// Quad vector j of nibbles holds quad j in the low and quad j + 4 in the high nibbles. Quad vector j of 2-bit fields
// holds quad 4 * j + i at bit 2 * i. The quad vector of 1-bit fields holds quad i at bit i.
#pragma once

#include <cstdint>

namespace minisgl {

constexpr int group_rows = 8;

constexpr int bf16_pair_bytes = 4;                                   // two columns of one output row
constexpr int bf16_group_pair_bytes = group_rows * bf16_pair_bytes;  // of a group
constexpr int bf16_pair_block_bytes = 2 * bf16_group_pair_bytes;     // of both groups

constexpr int nibble_bytes = 128;  // 32 columns of a group in 4 bits
constexpr int pair_bytes = 64;     // in 2 bits
constexpr int bit_bytes = 32;      // in 1 bit

constexpr int q8_0_block_bytes = 256 + 16;
constexpr int q4_0_block_bytes = nibble_bytes + 16;
constexpr int q4_1_block_bytes = nibble_bytes + 32;
constexpr int q5_0_block_bytes = nibble_bytes + bit_bytes + 16;
constexpr int q5_1_block_bytes = nibble_bytes + bit_bytes + 32;
constexpr int iq4_nl_block_bytes = nibble_bytes + 16;
constexpr int mxfp4_block_bytes = nibble_bytes + 16;
constexpr int q2_k_part_bytes = pair_bytes + 16;
constexpr int q2_k_block_bytes = 32 + 8 * q2_k_part_bytes;
constexpr int q3_k_part_bytes = pair_bytes + bit_bytes + 16;
constexpr int q3_k_block_bytes = 16 + 8 * q3_k_part_bytes;
constexpr int q4_k_part_bytes = nibble_bytes + 16;
constexpr int q4_k_block_bytes = 32 + 8 * q4_k_part_bytes;
constexpr int q5_k_part_bytes = nibble_bytes + bit_bytes + 16;
constexpr int q5_k_block_bytes = 32 + 8 * q5_k_part_bytes;
constexpr int q6_k_part_bytes = nibble_bytes + pair_bytes + 16;
constexpr int q6_k_block_bytes = 16 + 8 * q6_k_part_bytes;
constexpr int iq4_xs_part_bytes = nibble_bytes + 8;
constexpr int iq4_xs_block_bytes = 16 + 8 * iq4_xs_part_bytes;

// What 4 bits stand for, in scales.
constexpr std::int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr std::int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 32 activations of a row: x = q * scale, |q| <= 127.
struct ActivationBlock {
  std::int8_t q[32];
  float scale;
  float scaled_sum;        // scale * sum
  std::int16_t sums16[2];  // the sums of q[0, 16) and q[16, 32)
  std::int32_t sum;        // the sum of all q
};

}  // namespace minisgl
