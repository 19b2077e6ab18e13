// How products of some tens of rows (slim.cu) are cut, and the sums of a block: weights and x stream through stages in
// shared memory.
#pragma once

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/tile_copies.cuh"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda::hopper {

constexpr int kGroup = 128;           // threads of a warpgroup
constexpr int kGroupRows = 64;        // weight rows of a warpgroup
constexpr int kChunk = kTileColumns;  // inputs of a stage
constexpr int kMostStages = 16;
constexpr int kMostSplits = 8;
constexpr int kNormShares = 2 * kGroup;  // one of each thread, or of each row

struct SlimKernelArgs {
  const float* bias;
  void* y;
  SkinnyOutput output;
  int stages;                 // in shared memory
  int splits;                 // blocks of a cluster, which cut the inputs
  int rows, inputs, outputs;  // outputs of the product: half of the weight rows where gated
  PreparedNorm norm;          // of x
  NextNorm next;              // of y
  SlimHeads heads;
};

struct SlimBarriers {
  Barrier full[kMostStages], empty[kMostStages];
  float squares[kNormShares];  // of rows
  std::int32_t positions[kMostSlimRows], cache_rows[kMostSlimRows];
};

// groups: warpgroups of 64 weight rows; n: rows of x that the tile has room for.
template <int groups, int n>
struct SlimShape {
  static constexpr int kWeightRows = groups * kGroupRows;
  static constexpr int kConsumers = groups * kGroup;  // threads
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kWeightBytes = kWeightRows * kTileRowBytes;  // of a stage
  static constexpr int kStageBytes = kWeightBytes + n * kTileRowBytes;
  static constexpr int kSumStride = kWeightRows + 4;  // floats; lanes that write sums meet in no bank
  static constexpr int kSumBytes = n * kSumStride * 4;
  static constexpr int kBlocksPerProcessor = groups * n > 256 ? 1 : 2;
  static constexpr int bytes(int stages) { return std::max(stages * kStageBytes, kSumBytes) + 1024; }
};

// What a block does: the weight rows of its tile, in two halves (gates and ups where gated), and its chunks of inputs.
struct SlimShare {
  int first_output, num_outputs;
  int half_row[2];  // of weights
  int first_chunk, chunks;
  int rank;  // in the cluster

  __device__ __forceinline__ int column_of(int chunk) const { return (first_chunk + chunk) * kChunk; }
  __device__ SlimShare(const SlimKernelArgs& args, int weight_rows) {
    const int tile = blockIdx.x / args.splits;
    const bool gated = args.output == SkinnyOutput::gated;
    num_outputs = gated ? weight_rows / 2 : weight_rows;
    first_output = tile * num_outputs;
    half_row[0] = first_output;
    half_row[1] = first_output + (gated ? args.outputs : weight_rows / 2);
    rank = blockIdx.x % args.splits;
    const int all = (args.inputs + kChunk - 1) / kChunk;
    first_chunk = all * rank / args.splits;
    chunks = all * (rank + 1) / args.splits - first_chunk;
  }
};

// One thread: the copies of all stages.
template <int groups, int n>
__device__ __forceinline__ void fetch_stages(const CUtensorMap& weights, const CUtensorMap& x,
                                             const SlimKernelArgs& args, const SlimShare& share, std::uint32_t memory,
                                             SlimBarriers& barriers) {
  using S = SlimShape<groups, n>;
  const auto fetch_weights = [&](int chunk, int stage) {
    arrive_expecting(barriers.full[stage], S::kStageBytes);
    const std::uint32_t to = memory + stage * S::kStageBytes;
    const int column = share.column_of(chunk);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(weights, share.half_row[half], column, to + half * (S::kWeightBytes / 2), barriers.full[stage],
                Keep::briefly);
  };
  const auto fetch_x = [&](int chunk, int stage) {
    copy_tile(x, 0, share.column_of(chunk), memory + stage * S::kStageBytes + S::kWeightBytes, barriers.full[stage],
              Keep::normal);
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

// The sums of a warpgroup's weight rows over the block's chunks.
template <int groups, int n>
__device__ __forceinline__ void multiply_stages(const SlimKernelArgs& args, int chunks, int group, std::uint32_t memory,
                                                SlimBarriers& barriers, float (&sum)[n / 8][4]) {
  using S = SlimShape<groups, n>;
  const int lane = threadIdx.x % 32;
  const auto release = [&](int stage) {
    if (lane == 0) barriers.empty[stage].arrive();
  };
  int stage = 0, before = 0;
  unsigned parity = 0;
  for (int i = 0; i < chunks; ++i) {
    barriers.full[stage].wait(parity);
    const std::uint32_t weights_at = memory + stage * S::kStageBytes + group * kGroupRows * kTileRowBytes;
    const std::uint32_t x_at = memory + stage * S::kStageBytes + S::kWeightBytes;
    touch(sum);
    begin_products();
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
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

}  // namespace minisgl::cuda::hopper
