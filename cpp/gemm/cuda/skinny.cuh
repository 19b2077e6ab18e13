// The kernel of products of 1 to 16 rows. Bound by reading the weights once: their bytes over the read bandwidth is the
// floor.
//
// One block per processor takes a share of the outputs, in passes of up to 4 tiles of 8 weight rows; its warps cut the
// input dimension. A warp streams its weights through a ring of its own in shared memory, which is filled before the
// kernel that makes x is done: where a block's share fits the ring, all of the weights are there by then. The tensor
// cores multiply 16 rows of activations (A) by 8 weight rows (B), and shared memory adds the warps' sums up. The order
// of the input dimension is free within a sum, so a lane takes 8 consecutive elements of a row, straight into the
// registers that the instruction reads.
//
// The norm of x is one factor per row, applied to the sums: (x * weight) is multiplied, and each warp adds up the
// squares of the x that it reads anyway.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/processors.h"
#include "core/cuda/runtime.h"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda::skinny {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kTileRows = 8;  // rows of weights
constexpr int kTiles = 4;     // tiles of a pass
constexpr int kChunk = 64;    // inputs of a stage
constexpr int kStageBytes = kTileRows * kChunk * 2;

__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p));
}

// depth: a multiple of the usual ring.
template <int row_blocks, int depth = 1>
struct SkinnyShape {
  static constexpr int kRows = 8 * row_blocks;
  // Two blocks of a processor, one of the next kernel, leave room for each other.
  static constexpr int kStages = depth * (row_blocks == 1 ? 12 : 10);  // stages of a warp's ring
  static constexpr int kShareStride = kTiles * kTileRows + 2;
  static constexpr int kShares = kWarps * kRows * kShareStride;  // sums of a pass
  static constexpr int bytes(int stages, int passes) {
    return kWarps * (stages * kStageBytes + kRows * 4) + (passes > 1 ? 2 : 1) * kShares * 4;
  }
};

// A warp takes every kWarps-th chunk, so that a block reads memory in long pieces.
__device__ __forceinline__ int chunk_of(int warp, int index) {
  return warp + index * kWarps;
}
// How many of them lie below num_chunks.
__host__ __device__ __forceinline__ int chunks_of(int warp, int num_chunks) {
  return (num_chunks - warp + kWarps - 1) / kWarps;
}

// Where a warp's stream of stages is: for each pass of the block's tiles, for each of the warp's chunks, each tile.
struct Stream {
  int chunks, end_tile;           // the warp's chunks; of the block
  int tile, tiles, chunk, index;  // first tile and number of tiles of the pass; indices of chunk and tile in it

  __device__ Stream(int chunks, int first_tile, int end_tile)
      : chunks(chunks),
        end_tile(chunks > 0 ? end_tile : first_tile),
        tile(first_tile),
        tiles(min(kTiles, end_tile - first_tile)),
        chunk(0),
        index(0) {}
  __device__ bool done() const { return tile >= end_tile; }
  __device__ void advance() {
    if (++index < tiles) return;
    index = 0;
    if (++chunk < chunks) return;
    chunk = 0;
    tile += tiles;
    tiles = min(kTiles, end_tile - tile);
  }
};

template <typename T, typename Bias>
struct SkinnyKernelArgs {
  const T* weights;
  const Bias* bias;
  const T* x;
  const float* norm;  // [inputs] or null
  float eps;
  void* y;
  int stages;                 // what a warp's ring has room for: all of the warp's stages, or kStages
  int rows, inputs, outputs;  // outputs of the product: half of the weight rows where gated
};

// A lane's x of a chunk: rows group and group + 8, for each step of 32 inputs 8 of them; and where x is to be normed,
// the norm's weights.
template <typename T, int row_blocks, bool normed>
struct Activations {
  static_assert(!normed || std::is_same_v<T, bf16>);
  uint4 v[row_blocks][2];
  float4 weight[normed ? 2 : 1][2];

  __device__ __forceinline__ void load(const T* const (&row)[row_blocks], int first, int inputs) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int at = first + 32 * step;
#pragma unroll
      for (int b = 0; b < row_blocks; ++b)
        v[b][step] = at < inputs ? *reinterpret_cast<const uint4*>(row[b] + at) : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void load_norm(const float* norm, int first, int inputs) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = first + 32 * step + 4 * half;
        weight[step][half] = at < inputs ? __ldg(reinterpret_cast<const float4*>(norm + at)) : make_float4(0, 0, 0, 0);
      }
    }
  }

  // x * weight in place; the squares of x are added to `squares`.
  __device__ __forceinline__ void scale(float (&squares)[row_blocks]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const float4 low = weight[step][0], high = weight[step][1];
      const float factor[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        std::uint32_t word[4] = {v[b][step].x, v[b][step].y, v[b][step].z, v[b][step].w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float even = __uint_as_float(word[k] << 16), odd = __uint_as_float(word[k] & 0xffff0000u);
          squares[b] += even * even + odd * odd;
          word[k] = pack2<T>(even * factor[2 * k], odd * factor[2 * k + 1]);
        }
        v[b][step] = make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
};

// row_blocks: 1 for up to 8 rows of activations, 2 for up to 16. SkinnyOutput::gated: of a tile's rows 0 to 3 are
// gates, 4 to 7 the ups of the same outputs.
// settled: no kernel writes the weights while another of ours waits to start, so they are read before the kernel that
// makes x is done. Else only the second-level cache is asked for them by then, which later writes reach too: for the
// first `prefetched` stages of a ring. There the next kernel starts when the last weights are on their way: what it
// asked for sooner these would drive out of the cache again.
template <SkinnyOutput output, bool normed, int row_blocks, bool settled, int depth, typename T, typename Bias>
__device__ __forceinline__ void skinny_product(const SkinnyKernelArgs<T, Bias>& args, int prefetched) {
  using Shape = SkinnyShape<row_blocks, depth>;
  constexpr int kTileOutputs = output == SkinnyOutput::gated ? kTileRows / 2 : kTileRows;
  constexpr int kRows = Shape::kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int in_group = lane % 4, group = lane / 4;

  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char* ring = memory + warp * args.stages * kStageBytes;
  float* square_shares = reinterpret_cast<float*>(memory + kWarps * args.stages * kStageBytes);  // [kWarps][kRows]
  float* shares = square_shares + kWarps * kRows;  // [2][kWarps][kRows][kShareStride]; [1] for a single pass

  const int num_tiles = (args.outputs + kTileOutputs - 1) / kTileOutputs;
  const int num_chunks = (args.inputs + kChunk - 1) / kChunk;
  const int first_tile = static_cast<int>(std::int64_t{num_tiles} * blockIdx.x / gridDim.x);
  const int end_tile = static_cast<int>(std::int64_t{num_tiles} * (blockIdx.x + 1) / gridDim.x);

  const int chunks = chunks_of(warp, num_chunks);
  // A lane copies 16 bytes of rows lane / 8 and lane / 8 + 4 of a stage. Odd rows lie with their halves swapped, so
  // that the lanes of a load meet in no bank.
  Stream loads(chunks, first_tile, end_tile);
  int load_slot = 0;
  const auto load_next = [&] {
    if (!loads.done()) {
      const int row = lane / 8, column = lane % 8;
      const int at = chunk_of(warp, loads.chunk) * kChunk + column * 8;
      const int first_output = (loads.tile + loads.index) * kTileOutputs;
      unsigned char* slot = ring + load_slot * kStageBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int place = row + 4 * half;
        std::int64_t weight_row;
        if constexpr (output == SkinnyOutput::gated) {
          weight_row = min(first_output + row, args.outputs - 1) + half * args.outputs;
        } else {
          weight_row = min(first_output + place, args.outputs - 1);
        }
        copy_16_async(slot + place * kChunk * 2 + (column ^ (place % 2 * 4)) * 16,
                      args.weights + (at < args.inputs ? weight_row * args.inputs + at : 0), at < args.inputs);
      }
      loads.advance();
      if constexpr (!settled) {
        if (loads.done()) let_next_start();
      }
    }
    commit_copies();
    load_slot = load_slot + 1 == Shape::kStages ? 0 : load_slot + 1;
  };
  if constexpr (!settled) {
    Stream ahead(chunks, first_tile, end_tile);
#pragma unroll 1
    for (int i = 0; i < prefetched && !ahead.done(); ++i, ahead.advance()) {
      const int output_row = (ahead.tile + ahead.index) * kTileOutputs + lane;
      if (lane < kTileRows && output_row < args.outputs)
        prefetch_l2(args.weights + std::int64_t{output_row} * args.inputs + chunk_of(warp, ahead.chunk) * kChunk);
    }
    wait_for_previous();
  }
#pragma unroll 1
  for (int i = 0; i < Shape::kStages; ++i) load_next();
  if constexpr (settled) let_next_start();  // the next kernel's weights queue up behind these

  const T* x_row[row_blocks];
#pragma unroll
  for (int b = 0; b < row_blocks; ++b)
    x_row[b] = args.x + std::int64_t{min(group + 8 * b, args.rows - 1)} * args.inputs;
  const auto input_of = [&](int index) { return chunk_of(warp, index) * kChunk + in_group * 8; };

  // In each pass a thread finishes the sums of output `lane` for rows warp and warp + 8.
  static_assert(kTiles * kTileRows == 32 && kWarps == 8);
  float before[row_blocks] = {};  // what they are added to
  float inverse_norm[row_blocks];
  float squares[row_blocks] = {};
  int slot_index = 0;
  // The sums of the pass of `tiles` tiles. x is loaded kAhead chunks before it is needed: the fewer tiles, the sooner a
  // chunk is done.
  const auto multiply = [&]<int tiles>(std::integral_constant<int, tiles>, bool first_pass, int first_output,
                                       int num_outputs, float (&sum)[kTiles][4]) {
    constexpr int kAhead = normed || tiles > 2 ? 1 : row_blocks == 1 && tiles == 1 ? 4 : 2;
    constexpr int kChains = tiles == 1 ? 2 : 1;  // chains of sums that don't wait for each other
    float chain[tiles][kChains][4] = {};
    Activations<T, row_blocks, normed> next[kAhead], now[kAhead];
    if constexpr (normed) next[0].load_norm(args.norm, input_of(0), args.inputs);
    if (settled && first_pass) wait_for_previous();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) next[i].load(x_row, input_of(i), args.inputs);
    if constexpr (output == SkinnyOutput::added) {
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        const int r = warp + 8 * b;
        if (r < args.rows && lane < num_outputs)
          before[b] = to_float(static_cast<const T*>(args.y)[std::int64_t{r} * args.outputs + first_output + lane]);
      }
    }
    for (int first = 0; first < chunks; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        now[i] = next[i];
        next[i].load(x_row, input_of(first + kAhead + i), args.inputs);
        if constexpr (normed) next[i].load_norm(args.norm, input_of(first + kAhead + i), args.inputs);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= chunks) break;
        if constexpr (normed) {
          float of_chunk[row_blocks] = {};
          now[i].scale(of_chunk);
#pragma unroll
          for (int b = 0; b < row_blocks; ++b) squares[b] += first_pass ? of_chunk[b] : 0.0f;
        }
        wait_copies<Shape::kStages - tiles>();
        __syncwarp();
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint4 low = now[i].v[0][step];
          const uint4 high = row_blocks == 2 ? now[i].v[row_blocks - 1][step] : make_uint4(0, 0, 0, 0);
          uint4 w[tiles];
#pragma unroll
          for (int t = 0; t < tiles; ++t) {
            const int slot = slot_index + t < Shape::kStages ? slot_index + t : slot_index + t - Shape::kStages;
            w[t] = *reinterpret_cast<const uint4*>(ring + slot * kStageBytes + group * kChunk * 2 +
                                                   ((4 * step + in_group) ^ (group % 2 * 4)) * 16);
          }
#pragma unroll
          for (int t = 0; t < tiles; ++t) mma_16816<T>(chain[t][0], {low.x, high.x, low.y, high.y}, w[t].x, w[t].y);
#pragma unroll
          for (int t = 0; t < tiles; ++t)
            mma_16816<T>(chain[t][kChains - 1], {low.z, high.z, low.w, high.w}, w[t].z, w[t].w);
        }
        __syncwarp();
#pragma unroll
        for (int t = 0; t < tiles; ++t) load_next();
        slot_index = slot_index + tiles < Shape::kStages ? slot_index + tiles : slot_index + tiles - Shape::kStages;
      }
    }
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[t][i] = kChains == 1 ? chain[t][0][i] : chain[t][0][i] + chain[t][kChains - 1][i];
    }
  };

  int buffer = 0;
  for (int tile = first_tile; tile < end_tile; tile += kTiles, buffer ^= 1) {
    const int tiles = min(kTiles, end_tile - tile);
    const bool first_pass = tile == first_tile;
    const int first_output = tile * kTileOutputs;
    const int num_outputs = min(tiles * kTileOutputs, args.outputs - first_output);
    float sum[kTiles][4] = {};
    switch (tiles) {
      case 1: multiply(std::integral_constant<int, 1>{}, first_pass, first_output, num_outputs, sum); break;
      case 2: multiply(std::integral_constant<int, 2>{}, first_pass, first_output, num_outputs, sum); break;
      case 3: multiply(std::integral_constant<int, 3>{}, first_pass, first_output, num_outputs, sum); break;
      default: multiply(std::integral_constant<int, kTiles>{}, first_pass, first_output, num_outputs, sum);
    }

    // A lane holds rows group and group + 8 for weight rows 2 * in_group and the next of each tile.
    float* pass_shares = shares + buffer * Shape::kShares;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        *reinterpret_cast<float2*>(pass_shares + (warp * kRows + group + 8 * b) * Shape::kShareStride + t * kTileRows +
                                   2 * in_group) = make_float2(sum[t][2 * b], sum[t][2 * b + 1]);
      }
    }
    if (normed && first_pass) {
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        float total = squares[b];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (in_group == 0) square_shares[warp * kRows + group + 8 * b] = total;
      }
    }
    // The other buffer's sums were read before this: their readers are here.
    __syncthreads();
    if (normed && first_pass) {
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += square_shares[w * kRows + warp + 8 * b];
        inverse_norm[b] = rsqrtf(total / static_cast<float>(args.inputs) + args.eps);
      }
    }
    if (lane >= num_outputs) continue;
    const int column = first_output + lane;
#pragma unroll
    for (int b = 0; b < row_blocks; ++b) {
      const int r = warp + 8 * b;
      if (r >= args.rows) break;
      const auto total = [&](int place, int weight_row) {
        float value = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) value += pass_shares[(w * kRows + r) * Shape::kShareStride + place];
        if constexpr (normed) value *= inverse_norm[b];
        return args.bias != nullptr ? value + to_float(args.bias[weight_row]) : value;
      };
      const std::int64_t at = std::int64_t{r} * args.outputs + column;
      if constexpr (output == SkinnyOutput::gated) {
        const int place = lane / 4 * kTileRows + lane % 4;
        const float gate = total(place, column), up = total(place + 4, column + args.outputs);
        static_cast<T*>(args.y)[at] = from_float<T>(gate / (1.0f + __expf(-gate)) * up);
      } else if constexpr (output == SkinnyOutput::f32) {
        static_cast<float*>(args.y)[at] = total(lane, column);
      } else if constexpr (output == SkinnyOutput::added) {
        static_cast<T*>(args.y)[at] = from_float<T>(before[b] + total(lane, column));
      } else {
        static_cast<T*>(args.y)[at] = from_float<T>(total(lane, column));
      }
    }
  }
}

// How a product is cut: the launch's grid and shared memory, and the stages of a warp's ring.
struct SkinnyGrid {
  int blocks, stages, bytes;
};
template <typename Shape>
SkinnyGrid grid_of(std::int64_t outputs, std::int64_t inputs, int tile_outputs, int blocks_per_processor) {
  const auto num_tiles = static_cast<int>((outputs + tile_outputs - 1) / tile_outputs);
  const int num_blocks = std::min(num_tiles, num_processors() * blocks_per_processor);
  // Memory that it doesn't need may hold the weights of kernels after the next.
  const int tiles = (num_tiles + num_blocks - 1) / num_blocks;
  const int chunks = chunks_of(0, static_cast<int>((inputs + kChunk - 1) / kChunk));
  const int stages = std::min(Shape::kStages, tiles * chunks);
  return {num_blocks, stages, Shape::bytes(stages, (tiles + kTiles - 1) / kTiles)};
}

template <typename Shape, typename Kernel>
void allow_shared_memory(Kernel kernel) {
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::bytes(Shape::kStages, 2)));
}

}  // namespace minisgl::cuda::skinny
