// Prefill: a block takes a tile of a sequence's rows (with the query heads of one KV head) and goes through the
// positions that they see. Bound by the tensor cores: 4 * positions * head_dim FLOP for each query.
#pragma once

#include "kernels/cuda/prefill_tiles.cuh"

namespace minisgl::cuda {

template <typename T, int dim>
struct PrefillShape {
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = dim > 128 ? 1 : 2;  // a warp's blocks of 16 queries
  static constexpr int kQueries = kWarps * kBlocks * 16;
  using Tiles = PrefillTiles<T, dim, kWarps>;
  static constexpr int kQueryBytes = 2 * kQueries * kStride<dim>;
  static constexpr int kBytes = kQueryBytes + Tiles::kBytes;
};

template <typename T, int dim>
__global__ void __launch_bounds__(PrefillShape<T, dim>::kWarps * 32) prefill_kernel(const AttentionArgs args) {
  using Shape = PrefillShape<T, dim>;
  using Tiles = typename Shape::Tiles;
  using Product = ProductType<T>;
  constexpr int kThreads = Shape::kWarps * 32;
  let_next_start();
  wait_for_previous();
  const PrefillTile tile = prefill_tile(args, Shape::kQueries, Tiles::kPositions);
  if (tile.num_queries == 0) return;

  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ bool has_non_finite;
  auto* queries = reinterpret_cast<Product*>(memory);
  Tiles tiles(memory + Shape::kQueryBytes);
  if (threadIdx.x == 0) has_non_finite = false;
  for (int i = threadIdx.x; i < Shape::kQueries * (dim / 8); i += kThreads) {
    const int query = i / (dim / 8), column = i % (dim / 8) * 8;
    *reinterpret_cast<uint4*>(queries + query * kStride<dim> + column) =
        query_chunk<Product>(args, tile, query, column);
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
  tiles.load(pages, tile.begin, tile.end, 0);
  commit_copies();
  int stage = 0;
  for (std::int32_t first = tile.begin; first < tile.end; first += Tiles::kPositions, stage ^= 1) {
    const std::int32_t next = first + Tiles::kPositions;
    const bool masked = tile.masks(first, Tiles::kPositions);
    if (next < tile.end) tiles.load(pages, next, tile.end, stage ^ 1);
    commit_copies();
    tiles.settle(stage, masked, has_non_finite);
    fold_tile<Product, dim, Tiles::kPositions, Shape::kBlocks>(queries + warp_query * kStride<dim>, tiles.keys(stage),
                                                               tiles.values(stage), first, visible, masked,
                                                               args.scale * kLog2E, args.cap, softmax);
    __syncthreads();
  }

#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b) {
    finish_sums(softmax[b]);
    if (has_non_finite) add_non_finite<T, dim>(pages, tile, visible[b], Tiles::kPositions, softmax[b].acc);
    store_answers(args, tile, warp_query + 16 * b + lane / 4, softmax[b]);
  }
}

template <typename T, int dim>
void prefill_attention(const AttentionArgs& args, cudaStream_t stream) {
  using Shape = PrefillShape<T, dim>;
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(prefill_kernel<T, dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  launch_kernel(prefill_kernel<T, dim>, prefill_grid(args, Shape::kQueries), Shape::kWarps * 32, Shape::kBytes, stream,
                args);
}

}  // namespace minisgl::cuda
