// Rows of bf16 against bf16 weights by vdpbf16ps, which adds two products to each of 16 sums. The sum of an output
// meets the pairs of columns in ascending order, whatever the tile and the block; inside a pair the order is the
// processor's.
//
// Floor: 2 bytes read for each weight; with many rows, 64 operations per instruction. Columns are taken in blocks,
// whose weights stay in the second-level cache for all tiles of rows; the sums wait in memory between them. Weights of
// the next block are asked for evenly in the course of a block, so that reading them takes no time of its own.
#include <immintrin.h>
#include <string.h>

#include "gemm/kernel.h"

namespace minisgl::avx512bf16 {
namespace {

constexpr int lanes = 16;        // outputs in a vector: a pair of groups
constexpr int tile_rows = 8;     // with three vectors of outputs: 24 sums in registers
constexpr int tile_vectors = 3;  // and as many chains as the latency of the instruction needs
constexpr int max_rows = 64;
constexpr std::int64_t block_pairs = 512;
constexpr std::int64_t near_bytes = 8192;  // what one tile of rows asks for ahead, in all its streams

// Some columns of a panel: `vectors` vectors of outputs.
struct Block {
  const std::byte* weights;   // the first vector's
  std::int64_t vector_bytes;  // from a vector to the next
  const std::byte* x;         // [num_rows, ...] pairs of bf16
  std::int64_t x_stride;      // bytes
  std::int64_t num_pairs;     // of columns
  const std::byte* ahead;     // weights to ask for, of the first vector
  std::int64_t pairs_a_line;  // steps from one line of `ahead` to the next
};

inline __m512i splat_pair(const std::byte* x) {
  std::int32_t pair;
  memcpy(&pair, x, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

// Adds the block's products to sums [rows, vectors, lanes].
template <int rows, int vectors>
inline void multiply_tile(const Block& block, std::int64_t row, float* sums) {
  __m512 tile[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) tile[r][v] = _mm512_loadu_ps(sums + (r * vectors + v) * lanes);
  const std::byte* weights = block.weights;
  const std::byte* x = block.x + row * block.x_stride;
  const std::byte* ahead = block.ahead + row / tile_rows * (block.num_pairs / block.pairs_a_line) * 64;
  std::int64_t wait = block.pairs_a_line;
  for (std::int64_t pair = 0; pair < block.num_pairs; ++pair) {
    if (--wait == 0) {
      wait = block.pairs_a_line;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(ahead + v * block.vector_bytes, 0, 2);
      ahead += 64;
    }
    __m512i w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) w[v] = _mm512_loadu_si512(weights + v * block.vector_bytes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const __m512i pairs = splat_pair(x + r * block.x_stride);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) tile[r][v] = _mm512_dpbf16_ps(tile[r][v], (__m512bh)w[v], (__m512bh)pairs);
    }
    weights += bf16_pair_block_bytes;
    x += bf16_pair_bytes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(sums + (r * vectors + v) * lanes, tile[r][v]);
}

template <int rows, int vectors>
inline void multiply_block(const Block& block, std::int64_t num_rows, float* sums, std::int64_t row = 0) {
  for (; row + rows <= num_rows; row += rows) multiply_tile<rows, vectors>(block, row, sums + row * vectors * lanes);
  if constexpr (rows > 1) multiply_block<rows / 2, vectors>(block, num_rows, sums, row);
}

template <int vectors>
inline void store_rows(const KernelArgs& args, const float* sums, std::int64_t output) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t first = output + v * lanes, left = args.num_outputs - first;
    const auto mask = static_cast<__mmask16>(left >= lanes ? 0xffff : (1 << left) - 1);
    const __m512 bias = args.bias ? _mm512_maskz_loadu_ps(mask, args.bias + first) : _mm512_setzero_ps();
    for (std::int64_t row = 0; row < args.num_rows; ++row) {
      const __m512 sum = _mm512_loadu_ps(sums + (row * vectors + v) * lanes);
      _mm512_mask_storeu_ps(args.y + row * args.y_stride + first, mask, args.bias ? _mm512_add_ps(sum, bias) : sum);
    }
  }
}

// Up to max_rows rows of `vectors` vectors of outputs, from `output` on.
template <int vectors>
inline void multiply_panel(const KernelArgs& args, std::int64_t output) {
  alignas(64) float sums[max_rows * vectors * lanes];
  memset(sums, 0, static_cast<std::size_t>(args.num_rows) * vectors * lanes * sizeof(float));
  const std::int64_t vector_bytes = (args.cols + 1) / 2 * bf16_pair_block_bytes;
  const std::byte* weights = args.weights + output / lanes * vector_bytes;
  const std::int64_t num_tiles = (args.num_rows + tile_rows - 1) / tile_rows, num_pairs = args.cols / 2;
  for (std::int64_t pair = 0; pair < num_pairs; pair += block_pairs) {
    const std::byte* first = weights + pair * bf16_pair_block_bytes;
    const std::int64_t end = pair + block_pairs;
    // One tile reads what it asked for soon afterwards; several ask for the next block, of this panel or the next.
    const std::byte* next = num_tiles == 1    ? first + near_bytes / vectors
                            : end < num_pairs ? first + block_pairs * bf16_pair_block_bytes
                                              : weights + vectors * vector_bytes;
    multiply_block<tile_rows, vectors>({.weights = first,
                                        .vector_bytes = vector_bytes,
                                        .x = args.activations + pair * bf16_pair_bytes,
                                        .x_stride = args.activation_stride,
                                        .num_pairs = end < num_pairs ? block_pairs : num_pairs - pair,
                                        .ahead = next,
                                        .pairs_a_line = num_tiles},
                                       args.num_rows, sums);
  }
  if (args.cols % 2 != 0) {  // the last column beside a zero
    std::uint16_t last[max_rows][2];
    for (std::int64_t row = 0; row < args.num_rows; ++row) {
      memcpy(&last[row][0], args.activations + row * args.activation_stride + num_pairs * bf16_pair_bytes, 2);
      last[row][1] = 0;
    }
    multiply_block<tile_rows, vectors>({.weights = weights + num_pairs * bf16_pair_block_bytes,
                                        .vector_bytes = vector_bytes,
                                        .x = reinterpret_cast<const std::byte*>(last),
                                        .x_stride = bf16_pair_bytes,
                                        .num_pairs = 1,
                                        .ahead = weights + vectors * vector_bytes,
                                        .pairs_a_line = 1},
                                       args.num_rows, sums);
  }
  store_rows<vectors>(args, sums, output);
}

void gemm_bf16_rows(const KernelArgs& args) {
  for (std::int64_t row = 0; row < args.num_rows; row += max_rows) {
    KernelArgs rows = args;
    rows.activations += row * args.activation_stride;
    rows.num_rows = args.num_rows - row < max_rows ? args.num_rows - row : max_rows;
    rows.y += row * args.y_stride;
    std::int64_t output = 0;
    for (; output + (tile_vectors - 1) * lanes < args.num_outputs; output += tile_vectors * lanes)
      multiply_panel<tile_vectors>(rows, output);
    if (args.num_outputs - output > lanes) {
      multiply_panel<2>(rows, output);
    } else if (args.num_outputs > output) {
      multiply_panel<1>(rows, output);
    }
  }
}

}  // namespace

constinit const MoreKernels more_gemm_kernels = {gemm_bf16_rows};

}  // namespace minisgl::avx512bf16
