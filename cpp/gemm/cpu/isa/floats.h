// The kernel that f32 and f16 share: weights widened in registers, activations f32, one fused multiply-add for
// each input column in order.
#pragma once

#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {

// Load: `template <Lanes> static Lanes::F32 load(low, high)` and `bytes`, the size of one weight.
template <typename Load>
struct FloatFormat {
  using Activation = float;
  static constexpr int block_cols = 1, block_bytes = group_rows * Load::bytes, activations_per_block = 1;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    const typename Lanes::F32 w = Load::template load<Lanes>(weights, weights + next);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[r] = fma(Lanes::F32::splat(*activations_of<float>(x, r, stride)), w, sums[r]);
  }
};

// One row: four groups at once, so that their chains of additions overlap. More rows: tiles that fill the registers.
template <typename Load>
inline void multiply_floats_one_row(const KernelArgs& args) {
  multiply_all<FloatFormat<Load>, Narrow, 1, 4>(args);
}
template <typename Load>
inline void multiply_floats(const KernelArgs& args) {
  multiply_all<FloatFormat<Load>, Wide, tile_rows, 2>(args);
}

}  // namespace minisgl::MINISGL_ISA
