// Q8_0: w = d * q, q in [-128, 127], packed as q + 128. Floor: 34 bytes read for each 32 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q8_0 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q8_0_block_bytes, activations_per_block = 1;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    typename Lanes::DotU8 dots[rows];
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      const std::byte* p = weights + 32 * quad;
      const typename Lanes::U8 quads = Lanes::load_quads(p, p + next);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) dots[r].add(quads, activations_of<Activation>(x, r, stride)->q + 4 * quad);
    }
    const F32 d = Lanes::load_f16(weights + 256, weights + next + 256);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      sums[r] = fma(to_f32(dots[r].sum(block->sum)), d * F32::splat(block->scale), sums[r]);
    }
  }
};

}  // namespace

void gemm_q8_0_one_row(const KernelArgs& args) {
  multiply_all<Q8_0, Narrow, 1, 1>(args);
}
void gemm_q8_0(const KernelArgs& args) {
  multiply_all<Q8_0, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
