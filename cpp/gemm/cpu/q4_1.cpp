// Q4_1: w = d * q + m, q in [0, 15]. Floor: 20 bytes read for each 32 weights.
#include "gemm/cpu/kernels.h"
#include "gemm/cpu/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q4_1 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q4_1_block_bytes, activations_per_block = 1;

  template <int rows>
  static void multiply(const std::byte* weights, const std::byte* x, std::int64_t stride, F32x8 (&sums)[rows]) {
    DotU4 dots[rows];
    dot_nibbles<rows>(weights, x, stride, dots);
    const F32x8 d = F32x8::load_f16(weights + nibble_bytes), m = F32x8::load_f16(weights + nibble_bytes + 16);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      sums[r] = fma(to_f32(dots[r].sum()), d * F32x8::splat(block->scale), sums[r]);
      sums[r] = fma(m, F32x8::splat(block->scaled_sum), sums[r]);
    }
  }
};

}  // namespace

void gemm_q4_1(const KernelArgs& args) {
  multiply_all<Q4_1, 4, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
