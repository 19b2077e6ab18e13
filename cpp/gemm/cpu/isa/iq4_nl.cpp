// IQ4_NL: w = d * iq4_values[q], q in [0, 15]. Floor: 18 bytes read for each 32 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr ValueTable table(iq4_values);

struct IQ4_NL {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = iq4_nl_block_bytes, activations_per_block = 1;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    typename Lanes::DotU8 dots[rows];
    dot_table<Lanes, rows>(table, weights, next, x, stride, dots);
    const std::byte* scales = weights + nibble_bytes;
    const F32 d = Lanes::load_f16(scales, scales + next);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      sums[r] = fma(to_f32(dots[r].sum(block->sum)), d * F32::splat(block->scale), sums[r]);
    }
  }
};

}  // namespace

void gemm_iq4_nl_one_row(const KernelArgs& args) {
  multiply_all<IQ4_NL, Narrow, 1, 1>(args);
}
void gemm_iq4_nl(const KernelArgs& args) {
  multiply_all<IQ4_NL, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
