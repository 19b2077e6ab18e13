// Q5_0: w = d * (q - 16), q in [0, 31]. Floor: 22 bytes read for each 32 weights.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/nibbles.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Q5_0 {
  using Activation = ActivationBlock;
  static constexpr int block_cols = 32, block_bytes = q5_0_block_bytes, activations_per_block = 1;

  template <typename Lanes, int rows>
  static void multiply(const std::byte* weights, std::int64_t next, const std::byte* x, std::int64_t stride,
                       typename Lanes::F32 (&sums)[rows]) {
    using F32 = typename Lanes::F32;
    typename Lanes::DotU5 dots[rows];
    dot_5_bits<Lanes, rows>(weights, next, x, stride, dots);
    const std::byte* scales = weights + nibble_bytes + bit_bytes;
    const F32 d = Lanes::load_f16(scales, scales + next);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto* block = activations_of<Activation>(x, r, stride);
      const F32 dot = to_f32(dots[r].sum()) - F32::splat(static_cast<float>(16 * block->sum));  // exact
      sums[r] = fma(dot, d * F32::splat(block->scale), sums[r]);
    }
  }
};

}  // namespace

void gemm_q5_0_one_row(const KernelArgs& args) {
  multiply_all<Q5_0, Narrow, 1, 1>(args);
}
void gemm_q5_0(const KernelArgs& args) {
  multiply_all<Q5_0, Wide, tile_rows, 1>(args);
}

}  // namespace minisgl::MINISGL_ISA
