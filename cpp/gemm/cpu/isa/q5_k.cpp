// Q5_K: w = d * scale * q - dmin * min, q in [0, 31], scale and min in [0, 63] for each 32 columns.
// Floor: 180 bytes read for each 256 weights (176 in a file: the 6-bit scales are kept as bytes).
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q5_K {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = q5_k_block_bytes, activations_per_block = 8;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    const F32 d = Lanes::load_f16(weights, weights + next);
    const F32 negative_dmin = F32::zero() - Lanes::load_f16(weights + 16, weights + next + 16);
    const std::byte* part = weights + 32;
    for (int i = 0; i < 8; ++i, part += q5_k_part_bytes, x += sizeof(Activation)) {
      typename Lanes::DotU5 dots[rows];
      dot_5_bits<Lanes, rows>(part, next, x, stride, dots);
      const std::byte *scales = part + nibble_bytes + bit_bytes, *minima = scales + 8;
      const F32 scale = d * Lanes::load_u8(scales, scales + next);  // exact, as is the product below
      const F32 minimum = negative_dmin * Lanes::load_u8(minima, minima + next);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        sums[r] = fma(to_f32(dots[r].sum()), scale * F32::splat(block->scale), sums[r]);
        sums[r] = fma(minimum, F32::splat(block->scaled_sum), sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_q5_k_one_row(const KernelArgs& args) {
  multiply_all<Q5_K, Narrow, 1, 1>(args);
}
void gemm_q5_k(const KernelArgs& args) {
  multiply_all<Q5_K, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
