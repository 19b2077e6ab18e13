// Prefill: a block takes a tile of a sequence's rows (with the query heads of one KV head) and goes through the
// positions that they see. Bound by the tensor cores: 4 * positions * head_dim FLOP for each query.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

template <int dim>
struct PrefillShape {
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = dim > 128 ? 1 : 2;  // of 16 queries, a warp
  static constexpr int kQueries = kWarps * kBlocks * 16;
  static constexpr int kPositions = dim > 128 ? 32 : 64;
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kSharedElements = kQueries * kStride<dim> + 2 * 2 * kTile;
};

// grid: tiles of the longest sequence, the last rows first because they see the most; KV heads; sequences.
template <typename T, int dim>
__global__ void __launch_bounds__(PrefillShape<dim>::kWarps * 32) prefill_kernel(const AttentionArgs args) {
  using Shape = PrefillShape<dim>;
  constexpr int kThreads = Shape::kWarps * 32;
  let_next_start();
  wait_for_previous();
  const int group = args.shape.num_heads / args.shape.num_kv_heads;
  const SequenceEntry sequence = args.step.sequences[args.step.prefills[blockIdx.z]];
  const int total = sequence.num_rows * group;  // queries
  const int num_tiles = (total + Shape::kQueries - 1) / Shape::kQueries;
  const int tile = num_tiles - 1 - static_cast<int>(blockIdx.x);
  if (tile < 0) return;
  const int kv_head = blockIdx.y;
  const int first_query = tile * Shape::kQueries;
  const int num_queries = min(Shape::kQueries, total - first_query);

  extern __shared__ __align__(16) unsigned char memory[];
  T* queries = reinterpret_cast<T*>(memory);
  T* keys = queries + Shape::kQueries * kStride<dim>;  // [2][kPositions, dim]
  T* values = keys + 2 * Shape::kTile;

  // Query i of the sequence is head i % group of row i / group.
  const std::int64_t row_size = args.shape.row_size();
  for (int i = threadIdx.x; i < Shape::kQueries * (dim / 8); i += kThreads) {
    const int query = i / (dim / 8), column = i % (dim / 8) * 8;
    alignas(16) T chunk[8];
    if (query < num_queries && column < args.shape.head_dim) {
      const std::int64_t row = sequence.first_row + (first_query + query) / group;
      const int head = kv_head * group + (first_query + query) % group;
      const auto* from = static_cast<const bf16*>(args.qkv) + row * row_size + head * args.shape.head_dim + column;
#pragma unroll
      for (int k = 0; k < 8; ++k) chunk[k] = from_float<T>(to_float(from[k]));
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) chunk[k] = from_float<T>(0.0f);
    }
    *reinterpret_cast<uint4*>(queries + query * kStride<dim> + column) = *reinterpret_cast<const uint4*>(chunk);
  }

  const std::int32_t first_row_position = sequence.start_position + first_query / group;
  const std::int32_t end = sequence.start_position + (first_query + num_queries - 1) / group + 1;
  const std::int32_t begin = args.window > 0 ? max(0, first_row_position - args.window + 1) : 0;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_query = warp * Shape::kBlocks * 16;
  Softmax<dim> softmax[Shape::kBlocks];
  Visible visible[Shape::kBlocks];
#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b) {
    softmax[b].clear();
    const int query = first_query + warp_query + 16 * b + lane / 4;
    visible[b] =
        visible_to(sequence.start_position + query / group, sequence.start_position + (query + 8) / group, args.window);
  }

  const Pages<T> pages = pages_of<T>(args, sequence, kv_head);
  const auto load_tile = [&](std::int32_t first, int stage) {  // each warp its share of the positions
    constexpr int share = Shape::kPositions / Shape::kWarps;
    const int offset = stage * Shape::kTile + warp * share * kStride<dim>;
    load_rows<T, dim, share>(pages, first + warp * share, end, keys + offset, values + offset, lane);
  };
  load_tile(begin, 0);
  commit_copies();
  int stage = 0;
  for (std::int32_t first = begin; first < end; first += Shape::kPositions, stage ^= 1) {
    const std::int32_t next = first + Shape::kPositions;
    if (next < end) load_tile(next, stage ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    // All rows see all of a tile that ends before the first row, unless a window cuts it.
    const bool masked = next > first_row_position + 1 || args.window > 0;
    fold_tile<T, dim, Shape::kPositions, Shape::kBlocks>(queries + warp_query * kStride<dim>,
                                                         keys + stage * Shape::kTile, values + stage * Shape::kTile,
                                                         first, visible, masked, args.scale * kLog2E, softmax);
    __syncthreads();
  }

#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b) {
    finish_sums(softmax[b]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = warp_query + 16 * b + lane / 4 + 8 * half;
      if (query >= num_queries) continue;
      const std::int64_t row = sequence.first_row + (first_query + query) / group;
      const int head = kv_head * group + (first_query + query) % group;
      const float inverse = 1.0f / softmax[b].sum[half];
      bf16* out = static_cast<bf16*>(args.out) + (row * args.shape.num_heads + head) * args.shape.head_dim;
#pragma unroll
      for (int j = 0; j < dim / 8; ++j) {
        const int column = 8 * j + 2 * (lane % 4);
        if (column < args.shape.head_dim) {
          *reinterpret_cast<std::uint32_t*>(out + column) =
              pack2<bf16>(softmax[b].acc[j][2 * half] * inverse, softmax[b].acc[j][2 * half + 1] * inverse);
        }
      }
    }
  }
}

template <typename T, int dim>
void prefill_attention(const AttentionArgs& args, cudaStream_t stream) {
  using Shape = PrefillShape<dim>;
  constexpr int bytes = Shape::kSharedElements * static_cast<int>(sizeof(T));
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(prefill_kernel<T, dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const int group = args.shape.num_heads / args.shape.num_kv_heads;
  const int most_tiles = (args.step.most_prefill_rows * group + Shape::kQueries - 1) / Shape::kQueries;
  const dim3 grid(static_cast<unsigned>(most_tiles), static_cast<unsigned>(args.shape.num_kv_heads),
                  static_cast<unsigned>(args.step.num_prefills));
  launch_kernel(prefill_kernel<T, dim>, grid, Shape::kWarps * 32, bytes, stream, args);
}

}  // namespace minisgl::cuda
