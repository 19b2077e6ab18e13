// Q5_1: w = d * q + m, q in [0, 31]. Floor: 24 bytes read for each 32 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q5_1 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q5_1_block_bytes, activations_per_block = 1;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    typename Lanes::DotU5 dots[rows];
    dot_5_bits<Lanes, rows>(weights, next, x, stride, dots);
    const std::byte *scales = weights + nibble_bytes + bit_bytes, *minima = scales + 16;
    const F32 d = Lanes::load_f16(scales, scales + next), m = Lanes::load_f16(minima, minima + next);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      sums[r] = fma(to_f32(dots[r].sum()), d * F32::splat(block->scale), sums[r]);
      sums[r] = fma(m, F32::splat(block->scaled_sum), sums[r]);
    }
  }
};

}  // namespace

void gemm_q5_1_one_row(const KernelArgs& args) {
  multiply_all<Q5_1, Narrow, 1, 1>(args);
}
void gemm_q5_1(const KernelArgs& args) {
  multiply_all<Q5_1, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
