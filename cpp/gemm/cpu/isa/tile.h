// The loops that all kernels share: tiles of rows x groups, accumulated in registers over the whole input dimension.
//
// A lane is one output element, and its accumulator meets the blocks in their order, whatever the tile around it: that
// is what makes a row's bits independent of its neighbours.
#pragma once

#include "core/simd.h"
#include "gemm/kernel.h"
#include "gemm/layout.h"

namespace minisgl::MINISGL_ISA {

// How far ahead of the arithmetic weights are asked for, in all streams of a tile together. Nearer is slower where the
// processor doesn't read ahead by itself across pages; farther, lines might leave the first-level cache before their
// turn. Later tiles of rows find the weights in a cache.
constexpr int prefetch_bytes = 8192;

template <int bytes, int distance>
inline void prefetch_ahead(const std::byte* p) {
#pragma GCC unroll 32
  for (int offset = 0; offset < bytes; offset += 64) __builtin_prefetch(p + distance + offset, 0, 3);
}

// Adds the bias and writes the first `count` lanes.
template <typename Lanes>
inline void store_outputs(typename Lanes::F32 sums, const float* bias, std::int64_t count, float* y) {
  constexpr int size = Lanes::groups * group_rows;
  if (count >= size) {
    (bias ? sums + Lanes::F32::load(bias) : sums).store(y);
    return;
  }
  float lanes[size];
  sums.store(lanes);
  for (std::int64_t i = 0; i < count; ++i) y[i] = bias ? lanes[i] + bias[i] : lanes[i];
}

template <typename Lanes, int rows, int vectors>
inline void store_tile(const KernelArgs& args, std::int64_t row, std::int64_t group,
                       const typename Lanes::F32 (&sums)[vectors][rows]) {
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t output = (group + v * Lanes::groups) * group_rows;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
      store_outputs<Lanes>(sums[v][r], args.bias ? args.bias + output : nullptr, args.num_outputs - output,
                           args.y + (row + r) * args.y_stride + output);
  }
}

// A Format says how a block is multiplied:
//   using Activation                 ActivationBlock or float
//   block_cols, block_bytes          of a block of one group
//   activations_per_block            how many Activations of a row meet one block
//   multiply<Lanes, rows>(weights, next, x, stride, sums)
//                                    adds the products of one block of Lanes::groups groups, `next` bytes apart, to
//                                    sums[rows]; row r's activations are `stride` bytes after row r - 1's
// or, instead of all these, how a whole tile is multiplied:
//   multiply_tile<Lanes, rows, vectors, ahead>(args, row, group)
//
// A tile has `rows` rows and `vectors` vectors of Lanes::groups groups each, and asks for weights ahead where it says
// so.
template <typename Format, typename Lanes, int rows, int vectors, bool ahead>
inline void multiply_tile(const KernelArgs& args, std::int64_t row, std::int64_t group) {
  const std::int64_t num_blocks = args.cols / Format::block_cols;
  const std::int64_t group_bytes = num_blocks * Format::block_bytes;
  const std::byte* weights = args.weights + group * group_bytes;
  const std::byte* x = args.activations + row * args.activation_stride;
  typename Lanes::F32 sums[vectors][rows];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) sums[v][r] = Lanes::F32::zero();
  for (std::int64_t block = 0; block < num_blocks; ++block) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const std::byte* first = weights + v * Lanes::groups * group_bytes;
#pragma GCC unroll 2
      for (int g = 0; g < (ahead ? Lanes::groups : 0); ++g)
        prefetch_ahead<Format::block_bytes, prefetch_bytes / (vectors * Lanes::groups)>(first + g * group_bytes);
      Format::template multiply<Lanes, rows>(first, group_bytes, x, args.activation_stride, sums[v]);
    }
    weights += Format::block_bytes;
    x += Format::activations_per_block * sizeof(typename Format::Activation);
  }
  store_tile<Lanes>(args, row, group, sums);
}

template <typename Format, typename Lanes, int rows, int vectors, bool ahead>
inline void run_tile(const KernelArgs& args, std::int64_t row, std::int64_t group) {
  if constexpr (requires { &Format::template multiply_tile<Lanes, rows, vectors, ahead>; }) {
    Format::template multiply_tile<Lanes, rows, vectors, ahead>(args, row, group);
  } else {
    multiply_tile<Format, Lanes, rows, vectors, ahead>(args, row, group);
  }
}

// A function by itself: side by side with others, its loop would have fewer registers for addresses.
template <typename Format, typename Lanes, int rows, int vectors, bool ahead>
[[gnu::noinline]] void multiply_rows(const KernelArgs& args, std::int64_t row) {
  constexpr int groups = vectors * Lanes::groups;
  const std::int64_t num_groups = (args.num_outputs + group_rows - 1) / group_rows;
  std::int64_t group = 0;
  for (; group + groups <= num_groups; group += groups) run_tile<Format, Lanes, rows, vectors, ahead>(args, row, group);
  if constexpr (groups > 1)
    for (; group < num_groups; ++group) run_tile<Format, Narrow, rows, 1, ahead>(args, row, group);
}

// A whole kernel: tiles of `rows` rows, then of half as many, and so on down to one. The first asks for weights ahead;
// of the lower ones, which come once at most, all do.
template <typename Format, typename Lanes, int rows, int vectors>
inline void multiply_all(const KernelArgs& args, std::int64_t row = 0) {
  for (; row + rows <= args.num_rows; row += rows) {
    if (rows < tile_rows || row == 0) {
      multiply_rows<Format, Lanes, rows, vectors, true>(args, row);
    } else {
      multiply_rows < Format, Lanes, rows, vectors, rows<tile_rows>(args, row);
    }
  }
  if constexpr (rows > 1) multiply_all<Format, Lanes, rows / 2, vectors>(args, row);
}

template <typename Activation>
inline const Activation* activations_of(const std::byte* x, int row, std::int64_t stride) {
  return reinterpret_cast<const Activation*>(x + row * stride);
}

}  // namespace minisgl::MINISGL_ISA
