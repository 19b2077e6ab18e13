// Decode: a block takes the query heads of one KV head of one row, and a part of the positions. Its warps take tiles in
// turn, each through shared memory of its own; then they are merged, and the block that arrives last merges the parts
// (Flash-Decoding; Dao et al., 2023). Bound by reading each key and value once.
#pragma once

#include <algorithm>

#include "core/cuda/processors.h"
#include "kernels/cuda/decode_byte_tiles.cuh"
#include "kernels/cuda/decode_even.cuh"
#include "kernels/cuda/decode_parts.cuh"
#include "kernels/cuda/decode_tiles.cuh"

namespace minisgl::cuda {

template <typename T, int dim, int queries>
struct DecodeShape {
  using Tiles = DecodeTiles<T, dim, queries>;
  static constexpr int kWarps = Tiles::kWarps;
  static constexpr int kQueryBytes = 2 * queries * kStride<dim>;
  static_assert(kQueryBytes % 128 == 0);  // tiles begin behind them
  static constexpr int kLoadBytes = kQueryBytes + kWarps * Tiles::kBytes;
  static constexpr int kMergeBytes = 4 * kWarps * queries * (dim + 2);
  static constexpr int kBytes = kLoadBytes > kMergeBytes ? kLoadBytes : kMergeBytes;
};

// The query tile [queries, dim] in shared memory, as the products take it: consecutive heads of one row from
// first_head on; queries from num_queries on are zeros.
template <typename Tiles, int dim, int size>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, std::int64_t row, int first_head,
                                             int num_queries, typename Tiles::Product* queries) {
  using Product = typename Tiles::Product;
  constexpr int kThreads = Tiles::kWarps * 32, kChunks = size * (dim / 8);
  const int head_dim = args.shape.head_dim;
  const bf16* heads = static_cast<const bf16*>(args.qkv) + row * args.shape.row_size() + first_head * head_dim;
#pragma unroll
  for (int k = 0; k < (kChunks + kThreads - 1) / kThreads; ++k) {
    const int i = k * kThreads + static_cast<int>(threadIdx.x), query = i / (dim / 8), column = i % (dim / 8) * 8;
    if (i >= kChunks) break;
    alignas(16) bf16 from[8] = {};
    if (query < num_queries && column < head_dim)
      *reinterpret_cast<uint4*>(from) = *reinterpret_cast<const uint4*>(heads + query * head_dim + column);
    alignas(16) Product chunk[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) chunk[c] = from_float<Product>(to_float(from[c]));
    Tiles::put_query(chunk, column, queries + query * kStride<dim>);
  }
}

// grid: blocks of heads; sequences; parts, of which all first ones start before the others.
template <typename T, int dim, int size>
__global__ void __launch_bounds__(DecodeTiles<T, dim, size>::kWarps * 32, DecodeTiles<T, dim, size>::kLeastResident)
    decode_kernel(const AttentionArgs args) {
  using Shape = DecodeShape<T, dim, size>;
  using Tiles = typename Shape::Tiles;
  constexpr int kThreads = Shape::kWarps * 32;
  let_next_start();
  const int group = args.shape.num_heads / args.shape.num_kv_heads;
  const int blocks_per_kv_head = (group + size - 1) / size;
  const int kv_head = blockIdx.x / blocks_per_kv_head;
  const int first_in_group = blockIdx.x % blocks_per_kv_head * size;
  const int num_queries = min(size, group - first_in_group);
  const int first_head = kv_head * group + first_in_group;
  const int head_dim = args.shape.head_dim;
  const SequenceEntry sequence = args.step.sequences[args.step.decodes[blockIdx.y]];
  if (sequence.num_rows == 0) return;

  // Positions of this part: whole tiles.
  const std::int32_t end = sequence.start_position + 1;
  const std::int32_t begin = args.window > 0 ? max(0, end - args.window) : 0;
  constexpr int kPositions = Tiles::kPositions, kRound = Tiles::kRound;
  const PartCuts cuts(args, (end - begin + kPositions - 1) / kPositions, Tiles::kLeastTiles, Tiles::kExtraTiles);
  const int num_parts = cuts.num_parts, index = static_cast<int>(blockIdx.z);
  if (index >= num_parts) return;
  const std::int32_t part_begin = begin + cuts.before(index, Shape::kWarps) * kPositions;
  const std::int32_t part_end = min(end, begin + cuts.before(index + 1, Shape::kWarps) * kPositions);

  extern __shared__ __align__(128) unsigned char memory[];
  auto* queries = reinterpret_cast<typename Tiles::Product*>(memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Tiles tiles(memory + Shape::kQueryBytes + warp * Tiles::kBytes);
  const Pages<T> pages = pages_of<T>(args, sequence, kv_head);

  std::int32_t first = part_begin + warp * kPositions;
  // The step, and all positions but the last of a sequence with one row, were written by earlier steps: they need not
  // wait for this step's kernels.
  if (sequence.num_rows > 1 || first + kPositions >= end) wait_for_previous();
  tiles.begin(pages, first, part_end, lane);
  std::int32_t next = first;  // the first tile that isn't on its way
  int next_stage = 0;
  const auto load_next = [&] {
    if (next < part_end) tiles.load(pages, next, part_end, next_stage, lane);
    commit_copies();
    next += kRound;
    next_stage ^= 1;
  };
  load_next();
  wait_for_previous();
  load_queries<Tiles, dim, size>(args, sequence.first_row, first_head, num_queries, queries);
  __syncthreads();

  for (int stage = 0; first < part_end; first += kRound, stage ^= 1) {
    load_next();
    wait_copies<1>();
    __syncwarp();
    const bool masked = first + kPositions > end;
    tiles.fold(queries, first, stage, begin, end, masked, args.scale * kLog2E, args.cap);
    __syncwarp();
  }
  tiles.finish();
  wait_copies<0>();
  __syncthreads();  // all warps are done with the tiles; the memory serves the merge now

  float* shared_max = reinterpret_cast<float*>(memory);   // [kWarps][size]
  float* shared_sum = shared_max + Shape::kWarps * size;  // the same
  float* shared_acc = shared_sum + Shape::kWarps * size;  // [kWarps][size][dim]
  tiles.put(num_queries, {shared_max + warp * size, shared_sum + warp * size, shared_acc + warp * size * dim});
  __syncthreads();

  const std::int64_t block_of_heads = std::int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const std::int64_t part_floats = partial_floats(head_dim);
  float* partials = args.partials + block_of_heads * gridDim.z * part_floats;
  bf16* out =
      static_cast<bf16*>(args.out) + (std::int64_t{sequence.first_row} * args.shape.num_heads + first_head) * head_dim;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < num_queries * head_dim; i += 4 * kThreads) {
    const int query = i / head_dim, column = i % head_dim;
    float max = -INFINITY, sum = 0.0f;
    for (int w = 0; w < Shape::kWarps; ++w) max = fmaxf(max, shared_max[w * size + query]);
    float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int w = 0; w < Shape::kWarps; ++w) {
      const int from = w * size + query;
      const float weight = exp2_fast(shared_max[from] - max);  // 0 for a warp without a tile
      sum += weight * shared_sum[from];
      add_weighed(total, weight, *reinterpret_cast<const float4*>(shared_acc + from * dim + column));
    }
    if (num_parts == 1) {
      store_answer(out + i, total, 1.0f / (sum + sink_weight(args, first_head + query, max)));
    } else {
      float* part = partials + index * part_floats;
      if (column == 0) {
        part[query] = max;
        part[kDecodeQueries + query] = sum;
      }
      *reinterpret_cast<float4*>(part + 2 * kDecodeQueries + i) = total;
    }
  }
  if (num_parts == 1) return;

  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(args.arrived + block_of_heads, 1u) == static_cast<unsigned>(num_parts - 1);
    if (is_last) args.arrived[block_of_heads] = 0;  // for the next launch
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  merge_splits<Shape::kWarps, size, Shape::kBytes>(args, first_head, partials, num_parts, num_queries, memory, out);
}

template <typename T, int dim, int size>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kThreads = DecodeShape<T, dim, size>::kWarps * 32, kBytes = DecodeShape<T, dim, size>::kBytes;
  const auto kernel = decode_kernel<T, dim, size>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  static const std::int64_t resident = [] {
    int blocks = 0;
    MINISGL_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, decode_kernel<T, dim, size>, kThreads, kBytes));
    return std::int64_t{num_processors()} * blocks;
  }();
  const int blocks = decode_head_blocks(args.shape);
  AttentionArgs cut = args;
  const std::int64_t all_blocks = std::int64_t{args.step.num_decodes} * blocks;
  cut.num_splits = choose_splits(all_blocks, resident, args.most_parts);
  // Blocks that begin at once end at once: reads pause there, unless parts differ. What still runs at the end is short.
  cut.tapers = std::is_same_v<T, e4m3> && all_blocks > resident;
  if (cut.tapers && 2 * all_blocks <= args.most_parts) cut.num_splits = std::max(2, cut.num_splits);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(args.step.num_decodes),
                  static_cast<unsigned>(cut.num_splits));
  launch_kernel(kernel, grid, kThreads, kBytes, stream, cut);
}

template <typename T, int dim>
void decode_attention(const AttentionArgs& args, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, e4m3>) {
    if (args.shape.num_heads / args.shape.num_kv_heads <= 8) return launch_decode<T, dim, 8>(args, stream);
  } else {
    // With fewer, the blocks' shared memory keeps the next kernel from starting early, which takes longer than they
    // save.
    constexpr int kLeastEven = 33;
    if (args.step.num_decodes >= kLeastEven) return decode_evenly<T, dim>(args, stream);
  }
  launch_decode<T, dim, kDecodeQueries>(args, stream);
}

}  // namespace minisgl::cuda
