// Q6_K: w = d * scale * (q - 32), q in [0, 63], scale int8 for each 16 columns. Floor: 210 bytes for each 256 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q6_K {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = q6_k_block_bytes, activations_per_block = 8;

  // 16 columns: quads 0 to 3 (run 0, low nibbles) or 4 to 7 (run 1, high nibbles) of a part.
  template <typename Lanes, int run, int rows>
  static void multiply_run(const std::byte* part, std::int64_t next, const std::byte* x, std::int64_t stride,
                           typename Lanes::ScalePairs scales, typename Lanes::DotScaledU6 (&dots)[rows]) {
    using U8 = typename Lanes::U8;
    const std::byte* high_bits = part + nibble_bytes + 32 * run;
    const U8 top = Lanes::load_quads(high_bits, high_bits + next);
    const auto low_bits = [part, next](int quad) {
      const U8 nibbles = Lanes::load_quads(part + 32 * quad, part + next + 32 * quad);
      return run == 0 ? low_nibbles(nibbles) : high_nibbles(nibbles);
    };
    const U8 quads[4] = {low_bits(0) | move_bits<0, 2, 4>(top), low_bits(1) | move_bits<2, 2, 4>(top),
                         low_bits(2) | move_bits<4, 2, 4>(top), low_bits(3) | move_bits<6, 2, 4>(top)};
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      dots[r].template add<run>(quads, activations_of<Activation>(x, r, stride)->q + 16 * run, scales);
  }

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    const F32 d = Lanes::load_f16(weights, weights + next);
    const std::byte* part = weights + 16;
    for (int i = 0; i < 8; ++i, part += q6_k_part_bytes, x += sizeof(Activation)) {
      const std::byte* p = part + nibble_bytes + 64;
      const typename Lanes::ScalePairs scales = Lanes::load_scales(p, p + next);
      typename Lanes::DotScaledU6 dots[rows];
      multiply_run<Lanes, 0>(part, next, x, stride, scales, dots);
      multiply_run<Lanes, 1>(part, next, x, stride, scales, dots);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        const auto dot = dots[r].sum() - shift_left<5>(scales.times(block->sums16));
        sums[r] = fma(to_f32(dot), d * F32::splat(block->scale), sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_q6_k_one_row(const KernelArgs& args) {
  multiply_all<Q6_K, Narrow, 1, 1>(args);
}
void gemm_q6_k(const KernelArgs& args) {
  multiply_all<Q6_K, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
