// Q4_K: w = d * scale * q - dmin * min, q in [0, 15], scale and min in [0, 63] for each 32 columns.
// Floor: 148 bytes read for each 256 weights (144 in a file: the 6-bit scales are kept as bytes).
#include "gemm/cpu/kernels.h"
#include "gemm/cpu/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q4_K {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = q4_k_block_bytes, activations_per_block = 8;

  template <int rows>
  static void multiply(const std::byte* weights, const std::byte* x, std::int64_t stride, F32x8 (&sums)[rows]) {
    const F32x8 d = F32x8::load_f16(weights), negative_dmin = F32x8::zero() - F32x8::load_f16(weights + 16);
    const std::byte* part = weights + 32;
    for (int i = 0; i < 8; ++i, part += q4_k_part_bytes, x += sizeof(Activation)) {
      DotU4 dots[rows];
      dot_nibbles<rows>(part, x, stride, dots);
      const F32x8 scale = d * to_f32(I32x8::load_u8(part + nibble_bytes));  // exact, as is the product below
      const F32x8 minimum = negative_dmin * to_f32(I32x8::load_u8(part + nibble_bytes + 8));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        sums[r] = fma(to_f32(dots[r].sum()), scale * F32x8::splat(block->scale), sums[r]);
        sums[r] = fma(minimum, F32x8::splat(block->scaled_sum), sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_q4_k(const KernelArgs& args) {
  multiply_all<Q4_K, 4, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
