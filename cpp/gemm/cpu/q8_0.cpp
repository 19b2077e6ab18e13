// Q8_0: w = d * q, q in [-128, 127], packed as q + 128. Floor: 34 bytes read for each 32 weights.
#include "gemm/cpu/kernels.h"
#include "gemm/cpu/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q8_0 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q8_0_block_bytes, activations_per_block = 1;

  template <int rows>
  static void multiply(const std::byte* weights, const std::byte* x, std::int64_t stride, F32x8 (&sums)[rows]) {
    DotU8 dots[rows];
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      const U8x32 quads = U8x32::load(weights + 32 * quad);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) dots[r].add(quads, activations_of<Activation>(x, r, stride)->q + 4 * quad);
    }
    const F32x8 d = F32x8::load_f16(weights + 256);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      sums[r] = fma(to_f32(dots[r].sum(block->sum)), d * F32x8::splat(block->scale), sums[r]);
    }
  }
};

}  // namespace

void gemm_q8_0(const KernelArgs& args) {
  multiply_all<Q8_0, 4, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
