// Q4_0: w = d * (q - 8), q in [0, 15]. Floor: 18 bytes read for each 32 weights.
#include "gemm/cpu/kernels.h"
#include "gemm/cpu/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q4_0 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q4_0_block_bytes, activations_per_block = 1;

  template <int rows>
  static void multiply(const std::byte* weights, const std::byte* x, std::int64_t stride, F32x8 (&sums)[rows]) {
    DotU4 dots[rows];
    dot_nibbles<rows>(weights, x, stride, dots);
    const F32x8 d = F32x8::load_f16(weights + nibble_bytes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      const I32x8 dot = dots[r].sum() - I32x8::splat(8 * block->sum);
      sums[r] = fma(to_f32(dot), d * F32x8::splat(block->scale), sums[r]);
    }
  }
};

}  // namespace

void gemm_q4_0(const KernelArgs& args) {
  multiply_all<Q4_0, 4, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
