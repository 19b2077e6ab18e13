// Q3_K: w = d * scale * (q - 4), q in [0, 7], scale in [-32, 31] for each 16 columns.
// Floor: 114 bytes read for each 256 weights (110 in a file: the 6-bit scales are kept as bytes).
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q3_K {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = q3_k_block_bytes, activations_per_block = 8;

  // 16 columns: run 0 or 1 of a part.
  template <typename Lanes, int run, int rows>
  static void multiply_run(const std::byte* part, std::int64_t next, const std::byte* x, std::int64_t stride,
                           typename Lanes::DotScaledU3 (&dots)[rows]) {
    using U8 = typename Lanes::U8;
    const std::byte* p = part + 32 * run;
    const U8 pairs = Lanes::load_quads(p, p + next);
    const U8 top = Lanes::load_quads(part + pair_bytes, part + next + pair_bytes);
    const U8 quads[4] = {move_bits<0, 2, 0>(pairs) | move_bits<4 * run + 0, 1, 2>(top),
                         move_bits<2, 2, 0>(pairs) | move_bits<4 * run + 1, 1, 2>(top),
                         move_bits<4, 2, 0>(pairs) | move_bits<4 * run + 2, 1, 2>(top),
                         move_bits<6, 2, 0>(pairs) | move_bits<4 * run + 3, 1, 2>(top)};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      dots[r].template add<run>(quads, activations_of<Activation>(x, r, stride)->q + 16 * run);
  }

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    const F32 d = Lanes::load_f16(weights, weights + next);
    const std::byte* part = weights + 16;
    for (int i = 0; i < 8; ++i, part += q3_k_part_bytes, x += sizeof(Activation)) {
      const std::byte* p = part + pair_bytes + bit_bytes;
      const typename Lanes::ScalePairs scales = Lanes::load_scales(p, p + next);
      typename Lanes::DotScaledU3 dots[rows];
      multiply_run<Lanes, 0>(part, next, x, stride, dots);
      multiply_run<Lanes, 1>(part, next, x, stride, dots);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        const auto dot = dots[r].sum(scales) - shift_left<2>(scales.times(block->sums16));
        sums[r] = fma(to_f32(dot), d * F32::splat(block->scale), sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_q3_k_one_row(const KernelArgs& args) {
  multiply_all<Q3_K, Narrow, 1, 1>(args);
}
void gemm_q3_k(const KernelArgs& args) {
  multiply_all<Q3_K, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
