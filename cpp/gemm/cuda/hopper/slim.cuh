// Products of 9 to 256 rows on compute capability 9.0. Bound by reading the weights once, or with the most rows by the
// tensor cores: the larger of the weights' bytes over the read bandwidth and the operations over the product's rate is
// the floor. A block takes 64 or 128 weight rows, which are the rows of the tensor cores' tiles, so that few rows of x
// cost little more than those, and up to 128 rows of x; of more, blocks beside one another have a part each.
//
// One warp streams weights and x through stages in shared memory; it asks for the first weights before the kernel that
// makes x is done. Where a matrix has too few rows to fill the processors, the blocks of a cluster cut the inputs, and
// each adds up a part of the sums of all of them, in the blocks' order: the same bits every time.
#pragma once

#include "core/cuda/runtime.h"
#include "gemm/cuda/hopper/slim_heads.cuh"
#include "gemm/cuda/hopper/tensor_map.h"

namespace minisgl::cuda::hopper {

constexpr int kBand = 16;  // row blocks that share what the second-level cache has of weights

// Of several blocks of rows, and the tile of weights: neighbouring blocks take the row blocks of a band.
__device__ __forceinline__ void take_row_block(const SlimKernelArgs& args, int weight_rows, int& tile, int& first_row) {
  const int tile_outputs = args.output == SkinnyOutput::gated ? weight_rows / 2 : weight_rows;
  const int tiles = (args.outputs + tile_outputs - 1) / tile_outputs;
  const int row_blocks = (args.rows + args.block_rows - 1) / args.block_rows;
  const int band = tile / (tiles * kBand), in_band = tile - band * tiles * kBand;
  const int band_rows = min(kBand, row_blocks - band * kBand);
  first_row = (band * kBand + in_band % band_rows) * args.block_rows;
  tile = in_band / band_rows;
}
__device__ __forceinline__ SlimKernelArgs rows_from(SlimKernelArgs args, int first_row) {
  const int width = args.output == SkinnyOutput::f32 ? 4 : 2;
  args.y = static_cast<unsigned char*>(args.y) + std::int64_t{first_row} * args.outputs * width;
  args.x_scales += first_row;
  if (args.norm.squares != nullptr) args.norm.squares += first_row;
  args.next.scaled = static_cast<bf16*>(args.next.scaled) + std::int64_t{first_row} * args.outputs;
  args.next.squares += first_row;
  args.heads.positions += first_row;
  args.heads.cache_rows += first_row;
  args.rows = min(args.rows - first_row, args.block_rows);
  return args;
}

template <typename Stages>
__global__ void __launch_bounds__(Stages::Shape::kThreads, Stages::kBlocksPerProcessor)
    slim_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const SlimKernelArgs all_rows) {
  using S = typename Stages::Shape;
  constexpr int n = S::kRows;
  extern __shared__ unsigned char unaligned[];
  __shared__ SlimBarriers barriers;
  const std::uint32_t memory = (shared_address(unaligned) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < all_rows.stages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(S::kConsumers / 32);
    }
    publish_barriers();
  }
  __syncwarp();
  int tile = blockIdx.x / all_rows.splits, first_row = 0;
  if constexpr (Stages::kManyRows) take_row_block(all_rows, S::kWeightRows, tile, first_row);
  const SlimKernelArgs args = Stages::kManyRows ? rows_from(all_rows, first_row) : all_rows;
  const SlimShare share(args, S::kWeightRows, Stages::kInputs, tile, first_row);
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler sees: all of a warp agree
  if (warp >= S::kConsumers / 32) {
    if constexpr (S::kMovesRegisters) shrink_registers_to<40>();
    if (threadIdx.x == S::kConsumers) fetch_stages<Stages>(weights, x, args, share, memory, barriers);
    __syncwarp();
    for (int meeting = 0; meeting < 2 && args.splits > 1; ++meeting) {  // the consumers' two
      arrive_at_cluster<false>();
      wait_for_cluster();
    }
    return;
  }
  if constexpr (S::kMovesRegisters) grow_registers_to<232>();
  const bool makes_heads = S::kWeightRows == kSlimHead && args.heads.num_heads > 0;
  if (makes_heads) load_places(args, barriers, S::kConsumers);
  if (args.norm.squares != nullptr) {
    wait_for_previous();
    RowNorms<S>::add_squares(args, barriers.squares);
  }
  float sum[S::kTiles][n / 8][4];
  const int group = warp / 4, lane = threadIdx.x % 32;
  Stages::multiply(args, share, group, memory, barriers, sum);

  sync_threads(1, S::kConsumers);                        // all products are done: sums take the place of the stages
  if constexpr (Stages::kByteRows) wait_for_previous();  // which made the scales
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
    const int first = (group * S::kTiles + tile) * kGroupRows + warp % 4 * 16 + lane / 4;
    const float factors[2] = {Stages::factor(args, share, first), Stages::factor(args, share, first + 8)};
#pragma unroll
    for (int j = 0; j < n / 8; ++j) {
      const int row = 8 * j + lane % 4 * 2;
      float row_factors[2] = {1.0f, 1.0f};
      if constexpr (Stages::kByteRows) {
        row_factors[0] = args.x_scales[min(row, args.rows - 1)];
        row_factors[1] = args.x_scales[min(row + 1, args.rows - 1)];
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        store_shared(memory + ((row + e % 2) * S::kSumStride + first + e / 2 * 8) * 4,
                     sum[tile][j][e] * factors[e / 2] * row_factors[e % 2]);
      }
    }
  }
  if (args.splits > 1) {
    arrive_at_cluster<true>();
    wait_for_previous();
    wait_for_cluster();
  } else {
    wait_for_previous();
    sync_threads(1, S::kConsumers);
  }
  if (makes_heads) {
    write_heads<S>(args, share, memory, barriers);
  } else {
    write_outputs<S>(args, share, memory, barriers.squares);
  }
  if (args.splits > 1) {  // nobody leaves while others read its sums
    arrive_at_cluster<false>();
    wait_for_cluster();
  }
}

// The map of the weights: Stages::weight_map(data, rows, inputs).
template <typename Stages>
void launch_slim(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream, const float* x_scales = nullptr) {
  using S = typename Stages::Shape;
  constexpr int n = S::kRows;
  const bool is_gated = args.output == SkinnyOutput::gated;
  const auto rows = static_cast<int>(args.rows), inputs = static_cast<int>(args.inputs),
             outputs = static_cast<int>(args.outputs);
  const int tile_outputs = is_gated ? S::kWeightRows / 2 : S::kWeightRows;
  const int tiles = (outputs + tile_outputs - 1) / tile_outputs;
  const int chunks = ((inputs + Stages::kInputs - 1) / Stages::kInputs + tuning.splits - 1) / tuning.splits;
  const int stages = std::min({kMostStages, chunks, tuning.shared_bytes / Stages::kStageBytes});
  MINISGL_CHECK(args.heads.num_heads == 0 || S::kWeightRows == kSlimHead, "heads and blocks");
  MINISGL_CHECK(tuning.splits == 1 || (tuning.splits <= kMostSplits && tuning.splits * Stages::kInputs <= inputs),
                tuning.splits, " splits of ", inputs);
  MINISGL_CHECK(stages > 0, tuning.shared_bytes, " bytes for stages of ", Stages::kStageBytes);
  const CUtensorMap weights = Stages::weight_map(args.weights.data, is_gated ? 2 * outputs : outputs, inputs);
  const int row_blocks = Stages::kManyRows ? (rows + n - 1) / n : 1;
  const int block_rows = Stages::kManyRows && !Stages::kByteRows ? rows_of_blocks(rows, row_blocks) : n;
  const CUtensorMap x =
      tile_map(args.x, rows, inputs, block_rows, kTileRowBytes / (Stages::kByteRows ? 1 : 2), Stages::kByteRows);
  const int bytes = std::max(stages * Stages::kStageBytes, S::kSumBytes) + 1024;
  const auto kernel = slim_kernel<Stages>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_clusters(kernel, tuning.splits, dim3(static_cast<unsigned>(tiles * row_blocks * tuning.splits)), S::kThreads,
                  bytes, stream, weights, x,
                  SlimKernelArgs{.bias = args.bias,
                                 .y = args.y,
                                 .output = args.output,
                                 .stages = stages,
                                 .splits = tuning.splits,
                                 .rows = rows,
                                 .inputs = inputs,
                                 .outputs = outputs,
                                 .all_rows = rows,
                                 .block_rows = block_rows,
                                 .norm = args.norm,
                                 .next = args.next,
                                 .heads = args.heads,
                                 .scales = static_cast<const float*>(args.weights.scales),
                                 .x_scales = x_scales});
}

// For the rows that there are room for: Stages<groups, n> of each n.
template <template <int, int> typename Stages, int groups>
void launch_slim_rows(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (args.rows <= 16) return launch_slim<Stages<groups, 16>>(args, tuning, stream);
  if (args.rows <= 32) return launch_slim<Stages<groups, 32>>(args, tuning, stream);
  if (args.rows <= 64) return launch_slim<Stages<groups, 64>>(args, tuning, stream);
  if (args.rows <= 96) return launch_slim<Stages<groups, 96>>(args, tuning, stream);
  return launch_slim<Stages<groups, 128>>(args, tuning, stream);
}

}  // namespace minisgl::cuda::hopper
