// Products of 9 to 128 rows on compute capability 9.0. Bound by reading the weights once, or with the most rows by the
// tensor cores: the larger of the weights' bytes over the read bandwidth and the operations over the product's rate is
// the floor.
//
// A block takes 64 or 128 weight rows, which are the rows of the tensor cores' tiles, so that few rows of x cost little
// more than those. One warp streams weights and x through stages in shared memory; it asks for the first weights before
// the kernel that makes x is done. Where a matrix has too few rows to fill the processors, the blocks of a cluster cut
// the inputs, and each adds up a part of the sums of all of them, in the blocks' order: the same bits every time.
#include "core/cuda/runtime.h"
#include "gemm/cuda/hopper/slim_heads.cuh"
#include "gemm/cuda/hopper/tensor_map.h"

namespace minisgl::cuda {
namespace {

using namespace hopper;

template <int groups, int n>
__global__ void __launch_bounds__(SlimShape<groups, n>::kThreads, SlimShape<groups, n>::kBlocksPerProcessor)
    slim_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const SlimKernelArgs args) {
  using S = SlimShape<groups, n>;
  extern __shared__ unsigned char unaligned[];
  __shared__ SlimBarriers barriers;
  const std::uint32_t memory = (shared_address(unaligned) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.stages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(S::kConsumers / 32);
    }
    publish_barriers();
  }
  __syncwarp();
  const SlimShare share(args, S::kWeightRows);
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler sees: all of a warp agree
  if (warp == S::kConsumers / 32) {
    if (threadIdx.x % 32 == 0) fetch_stages<groups, n>(weights, x, args, share, memory, barriers);
    __syncwarp();
    for (int meeting = 0; meeting < 2 && args.splits > 1; ++meeting) {  // the consumers' two
      arrive_at_cluster<false>();
      wait_for_cluster();
    }
    return;
  }
  const bool makes_heads = groups == 2 && args.heads.num_heads > 0;
  if (makes_heads) load_places(args, barriers, S::kConsumers);
  if (args.norm.squares != nullptr) {
    wait_for_previous();
    RowNorms<groups, n>::add_squares(args, barriers.squares);
  }
  float sum[n / 8][4];
  const int group = warp / 4, lane = threadIdx.x % 32;
  multiply_stages<groups, n>(args, share.chunks, group, memory, barriers, sum);

  sync_threads(1, S::kConsumers);  // all products are done: sums take the place of the stages
  const int first = warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < n / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = 8 * j + lane % 4 * 2 + e % 2;
      store_shared(memory + (row * S::kSumStride + first + e / 2 * 8) * 4, sum[j][e]);
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
    write_heads<groups, n>(args, share, memory, barriers);
  } else {
    write_outputs<groups, n>(args, share, memory, barriers.squares);
  }
  if (args.splits > 1) {  // nobody leaves while others read its sums
    arrive_at_cluster<false>();
    wait_for_cluster();
  }
}

template <int groups, int n>
void launch(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  using S = SlimShape<groups, n>;
  const bool is_gated = args.output == SkinnyOutput::gated;
  const auto rows = static_cast<int>(args.rows), inputs = static_cast<int>(args.inputs),
             outputs = static_cast<int>(args.outputs);
  const int tile_outputs = is_gated ? S::kWeightRows / 2 : S::kWeightRows;
  const int tiles = (outputs + tile_outputs - 1) / tile_outputs;
  const int chunks = ((inputs + kChunk - 1) / kChunk + tuning.splits - 1) / tuning.splits;
  const int stages = std::min({kMostStages, chunks, tuning.shared_bytes / S::kStageBytes});
  MINISGL_CHECK(args.heads.num_heads == 0 || S::kWeightRows == kSlimHead, "heads of two blocks");
  MINISGL_CHECK(tuning.splits == 1 || (tuning.splits <= kMostSplits && tuning.splits * kChunk <= inputs), tuning.splits,
                " splits of ", inputs);
  MINISGL_CHECK(stages > 0, tuning.shared_bytes, " bytes for stages of ", S::kStageBytes);
  const CUtensorMap weights =
      tile_map(args.weights.data, is_gated ? 2 * outputs : outputs, inputs, S::kWeightRows / 2, kChunk);
  const CUtensorMap x = tile_map(args.x, rows, inputs, n, kChunk);
  const auto kernel = slim_kernel<groups, n>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::bytes(stages)));
  launch_clusters(kernel, tuning.splits, dim3(static_cast<unsigned>(tiles * tuning.splits)), S::kThreads,
                  S::bytes(stages), stream, weights, x,
                  SlimKernelArgs{.bias = args.bias,
                                 .y = args.y,
                                 .output = args.output,
                                 .stages = stages,
                                 .splits = tuning.splits,
                                 .rows = rows,
                                 .inputs = inputs,
                                 .outputs = outputs,
                                 .norm = args.norm,
                                 .next = args.next,
                                 .heads = args.heads});
}

template <int groups>
void launch_rows(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (args.rows <= 16) return launch<groups, 16>(args, tuning, stream);
  if (args.rows <= 32) return launch<groups, 32>(args, tuning, stream);
  if (args.rows <= 64) return launch<groups, 64>(args, tuning, stream);
  if (args.rows <= 96) return launch<groups, 96>(args, tuning, stream);
  return launch<groups, 128>(args, tuning, stream);
}

}  // namespace

bool has_slim_gemm() {
  static const bool is_hopper = [] {
    int device = 0, major = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major == 9;
  }();
  return is_hopper;
}

SlimTuning slim_tuning(const SlimArgs& args) {
  constexpr std::int64_t kEnough = 96, kProcessors = 132, kMany = 2 * kProcessors;  // blocks
  constexpr std::int64_t kLong = 16;  // stages, from which on a block streams more than it starts with
  const std::int64_t weight_rows = args.outputs * (args.output == SkinnyOutput::gated ? 2 : 1);
  const std::int64_t all_chunks = (args.inputs + kChunk - 1) / kChunk;
  SlimTuning tuning;
  if (args.heads.num_heads > 0 || weight_rows > kMany * kGroupRows) tuning.weight_rows = 2 * kGroupRows;
  const std::int64_t tiles = (weight_rows + tuning.weight_rows - 1) / tuning.weight_rows;
  for (const int splits : {2, 3, 4, 6, 8})
    if (tiles * tuning.splits < kEnough && splits * kChunk <= args.inputs) tuning.splits = splits;
  // One block of a processor is deep in flight; else there is room for another, of the next kernel.
  if (tiles * tuning.splits <= kProcessors && all_chunks / tuning.splits > kLong) tuning.shared_bytes *= 2;
  return tuning;
}

void slim_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (tuning.weight_rows == 128) return launch_rows<2>(args, tuning, stream);
  return launch_rows<1>(args, tuning, stream);
}

}  // namespace minisgl::cuda
