// Q2_K: w = d * scale * q - dmin * min, q in [0, 3], scale and min in [0, 15] for each 16 columns.
// Floor: 84 bytes read for each 256 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q2_K {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = q2_k_block_bytes, activations_per_block = 8;

  // 16 columns: run 0 or 1 of a part.
  template <typename Lanes, int run, int rows>
  static void multiply_run(const std::byte* part, std::int64_t next, const std::byte* x, std::int64_t stride,
                           typename Lanes::DotScaledU3 (&dots)[rows]) {
    using U8 = typename Lanes::U8;
    const std::byte* p = part + 32 * run;
    const U8 pairs = Lanes::load_quads(p, p + next);
    const U8 quads[4] = {move_bits<0, 2, 0>(pairs), move_bits<2, 2, 0>(pairs), move_bits<4, 2, 0>(pairs),
                         move_bits<6, 2, 0>(pairs)};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      dots[r].template add<run>(quads, activations_of<Activation>(x, r, stride)->q + 16 * run);
  }

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    const F32 d = Lanes::load_f16(weights, weights + next);
    const F32 negative_dmin = F32::zero() - Lanes::load_f16(weights + 16, weights + next + 16);
    const std::byte* part = weights + 32;
    for (int i = 0; i < 8; ++i, part += q2_k_part_bytes, x += sizeof(Activation)) {
      const std::byte* p = part + pair_bytes;
      const typename Lanes::ScalePairs both = Lanes::load_scales(p, p + next);
      const typename Lanes::ScalePairs scales = low_nibbles(both), minima = high_nibbles(both);
      typename Lanes::DotScaledU3 dots[rows];
      multiply_run<Lanes, 0>(part, next, x, stride, dots);
      multiply_run<Lanes, 1>(part, next, x, stride, dots);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        const F32 scale = F32::splat(block->scale);
        sums[r] = fma(to_f32(dots[r].sum(scales)), d * scale, sums[r]);
        sums[r] = fma(to_f32(minima.times(block->sums16)), negative_dmin * scale, sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_q2_k_one_row(const KernelArgs& args) {
  multiply_all<Q2_K, Narrow, 1, 1>(args);
}
void gemm_q2_k(const KernelArgs& args) {
  multiply_all<Q2_K, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
