// Prefill: a block takes a tile of a sequence's rows (with the query heads of one KV head) and goes through the
// positions that they see. Bound by the tensor cores: 4 * positions * head_dim FLOP for each query.
#pragma once

#include "kernels/cuda/prefill_tile.cuh"

namespace minisgl::cuda {

template <int dim>
struct PrefillShape {
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = dim > 128 ? 1 : 2;  // a warp's blocks of 16 queries
  static constexpr int kQueries = kWarps * kBlocks * 16;
  static constexpr int kPositions = dim > 128 ? 32 : 64;
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kSharedElements = kQueries * kStride<dim> + 2 * 2 * kTile;
};

template <typename T, int dim>
__global__ void __launch_bounds__(PrefillShape<dim>::kWarps * 32) prefill_kernel(const AttentionArgs args) {
  using Shape = PrefillShape<dim>;
  constexpr int kThreads = Shape::kWarps * 32;
  let_next_start();
  wait_for_previous();
  const PrefillTile tile = prefill_tile(args, Shape::kQueries);
  if (tile.num_queries == 0) return;

  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ bool has_non_finite;
  T* queries = reinterpret_cast<T*>(memory);
  T* keys = queries + Shape::kQueries * kStride<dim>;  // [2][kPositions, dim]
  T* values = keys + 2 * Shape::kTile;
  if (threadIdx.x == 0) has_non_finite = false;
  for (int i = threadIdx.x; i < Shape::kQueries * (dim / 8); i += kThreads) {
    const int query = i / (dim / 8), column = i % (dim / 8) * 8;
    *reinterpret_cast<uint4*>(queries + query * kStride<dim> + column) = query_chunk<T>(args, tile, query, column);
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_query = warp * Shape::kBlocks * 16;
  Softmax<dim> softmax[Shape::kBlocks];
  Visible visible[Shape::kBlocks];
#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b) {
    softmax[b].clear();
    visible[b] = tile.visible_to_lane(warp_query + 16 * b + lane / 4);
  }

  const Pages<T> pages = pages_of<T>(args, tile.sequence, tile.kv_head);
  constexpr int kShare = Shape::kPositions / Shape::kWarps;  // a warp's share of the positions
  const auto load_tile = [&](std::int32_t first, int stage) {
    const int offset = stage * Shape::kTile + warp * kShare * kStride<dim>;
    load_rows<T, dim, kShare>(pages, first + warp * kShare, tile.end, keys + offset, values + offset, lane);
  };
  load_tile(tile.begin, 0);
  commit_copies();
  int stage = 0;
  for (std::int32_t first = tile.begin; first < tile.end; first += Shape::kPositions, stage ^= 1) {
    const std::int32_t next = first + Shape::kPositions;
    const bool masked = tile.masks(first, Shape::kPositions);
    if (next < tile.end) load_tile(next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    if (masked) {
      bool any = false;
      for (int i = threadIdx.x; i < Shape::kPositions * (dim / 8); i += kThreads) {
        T* chunk = values + stage * Shape::kTile + i / (dim / 8) * kStride<dim> + i % (dim / 8) * 8;
        any = clear_non_finite<T>(chunk) || any;
      }
      if (any) has_non_finite = true;
      __syncthreads();
    }
    fold_tile<T, dim, Shape::kPositions, Shape::kBlocks>(queries + warp_query * kStride<dim>,
                                                         keys + stage * Shape::kTile, values + stage * Shape::kTile,
                                                         first, visible, masked, args.scale * kLog2E, softmax);
    __syncthreads();
  }

#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b) {
    finish_sums(softmax[b]);
    if (has_non_finite) add_non_finite<T, dim>(pages, tile, visible[b], Shape::kPositions, softmax[b].acc);
    store_answers(args, tile, warp_query + 16 * b + lane / 4, softmax[b]);
  }
}

template <typename T, int dim>
void prefill_attention(const AttentionArgs& args, cudaStream_t stream) {
  using Shape = PrefillShape<dim>;
  constexpr int bytes = Shape::kSharedElements * static_cast<int>(sizeof(T));
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(prefill_kernel<T, dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_kernel(prefill_kernel<T, dim>, prefill_grid(args, Shape::kQueries), Shape::kWarps * 32, bytes, stream, args);
}

}  // namespace minisgl::cuda
