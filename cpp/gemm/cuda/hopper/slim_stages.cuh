// How products of some tens of rows (slim.cuh) are cut, and the sums of a block where weights are bf16: weights and x
// stream through stages in shared memory.
#pragma once

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/tile_copies.cuh"
#include "gemm/cuda/hopper/tensor_map.h"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda::hopper {

constexpr int kGroup = 128;     // threads of a warpgroup
constexpr int kGroupRows = 64;  // weight rows of a warpgroup
constexpr int kMostStages = 16;
constexpr int kMostSplits = 8;
constexpr int kNormShares = 3 * kGroup;  // one of each thread, or of each row

struct SlimKernelArgs {
  const float* bias;
  void* y;
  SkinnyOutput output;
  int stages;                 // in shared memory
  int splits;                 // blocks of a cluster, which cut the inputs
  int rows, inputs, outputs;  // rows of the block; outputs of the product: half of the weight rows where gated
  int all_rows;               // of the product
  int block_rows;             // of x that a block copies: what lies past the last row would cost more than a row
  PreparedNorm norm;          // of x
  NextNorm next;              // of y
  SlimHeads heads;
  const float* scales;    // of the weights, or null
  const float* x_scales;  // [rows] of x in e4m3, or null
};

// Of `blocks` that share `rows` evenly, in whole groups of 8.
inline int rows_of_blocks(int rows, int blocks) {
  return (rows + 8 * blocks - 1) / (8 * blocks) * 8;
}

struct SlimBarriers {
  Barrier full[kMostStages], empty[kMostStages];
  float squares[kNormShares];  // of rows
  std::int32_t positions[kMostSlimRows], cache_rows[kMostSlimRows];
};

// groups: warpgroups; n: rows of x that the tile has room for; tiles: of 64 weight rows, of a warpgroup.
template <int groups, int n, int tiles = 1>
struct SlimShape {
  static constexpr int kRows = n, kTiles = tiles;
  static constexpr int kWeightRows = groups * tiles * kGroupRows;
  static constexpr int kConsumers = groups * kGroup;  // threads
  // Where a warpgroup's sums take most of the registers, a whole warpgroup fetches, which has few.
  static constexpr bool kMovesRegisters = tiles > 1;
  static constexpr int kThreads = kConsumers + (kMovesRegisters ? kGroup : 32);
  static constexpr int kSumStride = kWeightRows + 4;  // floats; lanes that write sums meet in no bank
  static constexpr int kSumBytes = n * kSumStride * 4;
};

// What a block does: the weight rows of its tile, in two halves (gates and ups where gated), and its chunks of inputs.
struct SlimShare {
  int first_output, num_outputs;
  int half_row[2];  // of weights
  int first_chunk, chunks, chunk_inputs;
  int rank;       // in the cluster
  int first_row;  // of x

  // The row of the matrix that a row of the tile is; a row past the last is the last.
  __device__ __forceinline__ int weight_row(const SlimKernelArgs& args, int row, int weight_rows) const {
    const bool second = row >= weight_rows / 2;
    const int end = second && args.output == SkinnyOutput::gated ? 2 * args.outputs : args.outputs;
    return min(second ? half_row[1] + row - weight_rows / 2 : half_row[0] + row, end - 1);
  }
  __device__ __forceinline__ int column_of(int chunk) const { return (first_chunk + chunk) * chunk_inputs; }
  __device__ SlimShare(const SlimKernelArgs& args, int weight_rows, int chunk_inputs, int tile, int first_row)
      : chunk_inputs(chunk_inputs), first_row(first_row) {
    const bool gated = args.output == SkinnyOutput::gated;
    num_outputs = gated ? weight_rows / 2 : weight_rows;
    first_output = tile * num_outputs;
    half_row[0] = first_output;
    half_row[1] = first_output + (gated ? args.outputs : weight_rows / 2);
    rank = blockIdx.x % args.splits;
    const int all = (args.inputs + chunk_inputs - 1) / chunk_inputs;
    first_chunk = all * rank / args.splits;
    chunks = all * (rank + 1) / args.splits - first_chunk;
  }
};

// Where the map of the weights has them, where it is a map of the matrix.
struct MatrixPlaces {
  static __device__ __forceinline__ int map_row(int row) { return row; }
  static __device__ __forceinline__ int map_column(int column) { return column; }
};

// One thread: the copies of all stages.
template <typename Stages>
__device__ __forceinline__ void fetch_stages(const CUtensorMap& weights, const CUtensorMap& x,
                                             const SlimKernelArgs& args, const SlimShare& share, std::uint32_t memory,
                                             SlimBarriers& barriers) {
  const auto fetch_weights = [&](int chunk, int stage) {
    arrive_expecting(barriers.full[stage], 2 * Stages::kHalfBytes + Stages::kXTiles * args.block_rows * kTileRowBytes);
    const std::uint32_t to = memory + stage * Stages::kStageBytes;
    const int column = Stages::map_column(share.column_of(chunk));
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(weights, Stages::map_row(share.half_row[half]), column, to + half * Stages::kHalfBytes,
                barriers.full[stage], Keep::briefly);
  };
  const auto fetch_x = [&](int chunk, int stage) {
    const std::uint32_t to = memory + stage * Stages::kStageBytes + Stages::kWeightBytes;
#pragma unroll
    for (int tile = 0; tile < Stages::kXTiles; ++tile)
      copy_tile(x, share.first_row, share.column_of(chunk) + tile * kTileColumns, to + tile * Stages::kXTileBytes,
                barriers.full[stage], Keep::normal);
  };
  prefetch_map(x);
  const int filled = min(args.stages, share.chunks);
  for (int i = 0; i < filled; ++i) fetch_weights(i, i);
  let_next_start();  // its weights queue up behind these
  wait_for_previous();
  for (int i = 0; i < filled; ++i) fetch_x(i, i);
  int stage = 0;
  unsigned parity = 0;
  for (int i = filled; i < share.chunks; ++i) {
    barriers.empty[stage].wait(parity);
    fetch_weights(i, stage);
    fetch_x(i, stage);
    if (++stage == args.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// What the consumers' sums are made of. Weights in bf16: both operands are read where they lie. many: several blocks
// share the rows of x.
template <int groups, int n, bool many>
struct PlainStages : MatrixPlaces {
  using Shape = SlimShape<groups, n>;
  static constexpr int kBlocksPerProcessor = groups * n > 256 ? 1 : 2;
  static constexpr int kInputs = kTileColumns;                             // of a stage
  static constexpr int kWeightBytes = Shape::kWeightRows * kTileRowBytes;  // of a stage
  static constexpr int kXTiles = 1, kXTileBytes = n * kTileRowBytes;
  static constexpr bool kManyRows = many, kByteRows = false;
  static constexpr int kStageBytes = kWeightBytes + kXTiles * kXTileBytes;
  static constexpr int kHalfBytes = kWeightBytes / 2;

  // The sums of a warpgroup's weight rows over the block's chunks.
  static __device__ __forceinline__ void multiply(const SlimKernelArgs& args, const SlimShare& share, int group,
                                                  std::uint32_t memory, SlimBarriers& barriers,
                                                  float (&sums)[1][n / 8][4]) {
    float (&sum)[n / 8][4] = sums[0];
    const int lane = threadIdx.x % 32;
    const auto release = [&](int stage) {
      if (lane == 0) barriers.empty[stage].arrive();
    };
    int stage = 0, before = 0;
    unsigned parity = 0;
    for (int i = 0; i < share.chunks; ++i) {
      barriers.full[stage].wait(parity);
      const std::uint32_t weights_at = memory + stage * kStageBytes + group * kGroupRows * kTileRowBytes;
      const std::uint32_t x_at = memory + stage * kStageBytes + kWeightBytes;
      touch(sum);
      begin_products();
#pragma unroll
      for (int k = 0; k < kInputs / 16; ++k) {
        Product<bf16, n>::shared(sum, tile_descriptor(weights_at + 32 * k, 16), tile_descriptor(x_at + 32 * k, 16),
                                 i > 0 || k > 0);
      }
      commit_products();
      if (i > 0) {
        wait_products<1>();
        release(before);
      }
      before = stage;
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wait_products<0>();
    touch(sum);
  }
  // What the sums of a row of the tile are multiplied by.
  static __device__ __forceinline__ float factor(const SlimKernelArgs&, const SlimShare&, int) { return 1.0f; }
  static CUtensorMap weight_map(const void* data, int rows, int inputs) {
    return tile_map(data, rows, inputs, Shape::kWeightRows / 2, kInputs);
  }
};

}  // namespace minisgl::cuda::hopper
