// bf16 weights against f32 activations: weights widened in registers, one fused multiply-add for each input column in
// order. Floor: 2 bytes read for each weight.
#include "gemm/cpu/isa/kernels.h"
#include "gemm/cpu/isa/tile.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Bf16 {
  // The columns of a pair in turn, each for the whole tile: the activations of one are all that registers have room
  // for.
  template <typename Lanes, int rows, int vectors, bool ahead>
  static void multiply_tile(const KernelArgs& args, std::int64_t row, std::int64_t group) {
    const std::int64_t group_bytes = (args.cols + 1) / 2 * bf16_group_pair_bytes;
    const std::byte* weights = args.weights + offset(group, group_bytes);
    const std::byte* x = args.activations + row * args.activation_stride;
    typename Lanes::F32 sums[vectors][rows];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sums[v][r] = Lanes::F32::zero();
    for (std::int64_t col = 0; col + 2 <= args.cols; col += 2) {
#pragma GCC unroll 8
      for (int v = 0; v < (ahead ? vectors : 0); ++v)
        prefetch_ahead<bf16_group_pair_bytes, 2 * prefetch_bytes / vectors>(weights +
                                                                            offset(v * Lanes::groups, group_bytes));
      add_column<Lanes, 0>(weights, group_bytes, x, args.activation_stride, sums);
      add_column<Lanes, 1>(weights, group_bytes, x, args.activation_stride, sums);
      weights += bf16_pair_block_bytes;
      x += 2 * sizeof(float);
    }
    if (args.cols % 2 != 0) add_column<Lanes, 0>(weights, group_bytes, x, args.activation_stride, sums);
    store_tile<Lanes>(args, row, group, sums);
  }

 private:
  // Where a group begins; also how far it lies behind an even one.
  static constexpr std::int64_t offset(std::int64_t group, std::int64_t group_bytes) {
    return group / 2 * 2 * group_bytes + group % 2 * bf16_group_pair_bytes;
  }

  template <typename Lanes, int column, int rows, int vectors>
  static void add_column(const std::byte* weights, std::int64_t group_bytes, const std::byte* x, std::int64_t stride,
                         typename Lanes::F32 (&sums)[vectors][rows]) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const typename Lanes::F32 w =
          Lanes::template load_bf16_column<column>(weights + offset(v * Lanes::groups, group_bytes));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r)
        sums[v][r] = fma(Lanes::F32::splat(activations_of<float>(x, r, stride)[column]), w, sums[v][r]);
    }
  }
};

}  // namespace

void gemm_bf16_one_row(const KernelArgs& args) {
  multiply_all<Bf16, Narrow, 1, 4>(args);
}
void gemm_bf16(const KernelArgs& args) {
  multiply_all<Bf16, Wide, tile_rows, 2>(args);
}

}  // namespace minisgl::MINISGL_ISA
