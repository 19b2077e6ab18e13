// The inner product that all formats with 4-bit quants share: 32 columns of a group against several rows.
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

}  // namespace minisgl::MINISGL_ISA
