// IQ4_XS: w = d * scale * iq4_values[q], q in [0, 15], scale in [-32, 31] for each 32 columns.
// Floor: 138 bytes read for each 256 weights (136 in a file: the 6-bit scales are kept as bytes).
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr ValueTable table(iq4_values);

struct IQ4_XS {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 256, block_bytes = iq4_xs_block_bytes, activations_per_block = 8;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    const F32 d = Lanes::load_f16(weights, weights + next);
    const std::byte* part = weights + 16;
    for (int i = 0; i < 8; ++i, part += iq4_xs_part_bytes, x += sizeof(Activation)) {
      typename Lanes::DotU8 dots[rows];
      dot_table<Lanes, rows>(table, part, next, x, stride, dots);
      const std::byte* scales = part + nibble_bytes;
      const F32 scale = d * Lanes::load_i8(scales, scales + next);  // exact
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const auto* block = activations_of<Activation>(x, r, stride);
        sums[r] = fma(to_f32(dots[r].sum(block->sum)), scale * F32::splat(block->scale), sums[r]);
      }
    }
  }
};

}  // namespace

void gemm_iq4_xs_one_row(const KernelArgs& args) {
  multiply_all<IQ4_XS, Narrow, 1, 1>(args);
}
void gemm_iq4_xs(const KernelArgs& args) {
  multiply_all<IQ4_XS, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
