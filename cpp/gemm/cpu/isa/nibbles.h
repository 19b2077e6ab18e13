// The inner products of formats with quants of 4 and 5 bits: 32 columns of a group against several rows.
#pragma once

#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {

// dots[r] = sum over 32 columns of the unsigned 4-bit weights times row r's activations.
template <typename Lanes, int rows>
inline void dot_nibbles(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                        typename Lanes::DotU4 (&dots)[rows]) {
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) {
    const std::byte* p = weights + 32 * quad;
    const typename Lanes::U8 nibbles = Lanes::load_quads(p, p + next);
    const typename Lanes::U8 low = low_nibbles(nibbles), high = high_nibbles(nibbles);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<ActivationBlock>(x, r, stride);
      dots[r].add(low, block->q + 4 * quad);
      dots[r].add(high, block->q + 16 + 4 * quad);
    }
  }
}

// The same for weights of 5 bits: quad vector `quad` and the fifth bits of its two quads.
template <typename Lanes, int quad, int rows>
inline void add_5_bits(const std::byte* weights, std::int64_t next, typename Lanes::U8 fifth_bits, const std::byte* x,
                       std::int64_t stride, typename Lanes::DotU5 (&dots)[rows]) {
  const std::byte* p = weights + 32 * quad;
  const typename Lanes::U8 nibbles = Lanes::load_quads(p, p + next);
  const typename Lanes::U8 low = low_nibbles(nibbles) | move_bits<quad, 1, 4>(fifth_bits);
  const typename Lanes::U8 high = high_nibbles(nibbles) | move_bits<quad + 4, 1, 4>(fifth_bits);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const auto* block = activations_of<ActivationBlock>(x, r, stride);
    dots[r].template add<0>(low, block->q + 4 * quad);
    dots[r].template add<1>(high, block->q + 16 + 4 * quad);
  }
}

// dots[r] = sum over 32 columns of the unsigned 5-bit weights times row r's activations.
template <typename Lanes, int rows>
inline void dot_5_bits(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::DotU5 (&dots)[rows]) {
  const std::byte* top = weights + nibble_bytes;
  const typename Lanes::U8 fifth_bits = Lanes::load_quads(top, top + next);
  add_5_bits<Lanes, 0>(weights, next, fifth_bits, x, stride, dots);
  add_5_bits<Lanes, 1>(weights, next, fifth_bits, x, stride, dots);
  add_5_bits<Lanes, 2>(weights, next, fifth_bits, x, stride, dots);
  add_5_bits<Lanes, 3>(weights, next, fifth_bits, x, stride, dots);
}

// What 4 bits stand for, plus 128.
struct ValueTable {
  std::uint8_t plus_128[16];

  consteval explicit ValueTable(const std::int8_t (&values)[16]) : plus_128{} {
    for (int i = 0; i < 16; ++i) plus_128[i] = static_cast<std::uint8_t>(values[i] + 128);
  }
};

// dots[r] = sum over 32 columns of the weights that the nibbles stand for times row r's activations.
template <typename Lanes, int rows>
inline void dot_table(const ValueTable& table, const std::byte* weights, std::int64_t next, const std::byte* x,
                      std::int64_t stride, typename Lanes::DotU8 (&dots)[rows]) {
#pragma GCC unroll 4
  for (int quad = 0; quad < 4; ++quad) {
    const std::byte* p = weights + 32 * quad;
    const typename Lanes::U8 nibbles = Lanes::load_quads(p, p + next);
    const typename Lanes::U8 low = look_up(table.plus_128, low_nibbles(nibbles));
    const typename Lanes::U8 high = look_up(table.plus_128, high_nibbles(nibbles));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<ActivationBlock>(x, r, stride);
      dots[r].add(low, block->q + 4 * quad);
      dots[r].add(high, block->q + 16 + 4 * quad);
    }
  }
}

}  // namespace minisgl::MINISGL_ISA
