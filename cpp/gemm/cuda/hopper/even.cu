// Gated products of 129 to 192 rows on compute capability 9.0, as slim.cuh says, but with x's rows as the rows of the
// tensor cores' tiles, 64 of them to a warpgroup: a block's weights are columns then, and 224 of them, half gates and
// half ups, lie more evenly on the processors than multiples of 128 (28672 of them on 128 of 132). Three warpgroups
// leave no registers for a warp that fetches: a thread of theirs does.
#include "gemm/cuda/hopper/even.h"
#include "gemm/cuda/hopper/slim.cuh"

namespace minisgl::cuda {
namespace {

using namespace hopper;

#define MINISGL_OUT_224 MINISGL_OUT_128, MINISGL_OUT32(16), MINISGL_OUT8(24), MINISGL_OUT8(26)
#define MINISGL_REG_224                                                                                       \
  MINISGL_REG_128                                                                                             \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
  "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"

// d [64 x 224] f32 (+)= a · bᵀ of bf16 in shared memory, 16 columns of each.
__device__ __forceinline__ void multiply_224(float (&d)[28][4], std::uint64_t a, std::uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %114, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n224k16.f32.bf16.bf16 {" MINISGL_REG_224 "}, %112, %113, p, 1, 1, 0, 0;\n}\n"
      : MINISGL_OUT_224
      : "l"(a), "l"(b), "r"(accumulate)
      : "memory");
}

constexpr int kRows = kMostManyRows;
constexpr int kConsumers = kRows / kGroupRows * kGroup;  // threads
constexpr int kSumStride = kEvenWeightRows + 8;          // floats; lanes that write pairs of sums meet in no bank
constexpr int kSumBytes = kRows * kSumStride * 4;
constexpr int kWeightBytes = kEvenWeightRows * kTileRowBytes;
constexpr int kStageBytes = kWeightBytes + kRows * kTileRowBytes;  // weights, then x
constexpr int kStages = 4;

// As write_outputs_of() knows a block.
struct EvenShape {
  static constexpr int kRows = kMostManyRows, kWeightRows = kEvenWeightRows;
  static constexpr int kConsumers = 3 * kGroup, kSumStride = kEvenWeightRows + 8;
};

// The copies of a block, which one thread makes.
struct EvenCopies {
  const CUtensorMap &weights, &x;
  const SlimShare& share;
  int block_rows;
  std::uint32_t memory;
  SlimBarriers& barriers;

  __device__ __forceinline__ void fetch_weights(int chunk, int stage) const {
    arrive_expecting(barriers.full[stage], kWeightBytes + block_rows * kTileRowBytes);
    const std::uint32_t to = memory + stage * kStageBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(weights, share.half_row[half], share.column_of(chunk), to + half * (kWeightBytes / 2),
                barriers.full[stage], Keep::briefly);
  }
  __device__ __forceinline__ void fetch_x(int chunk, int stage) const {
    copy_tile(x, 0, share.column_of(chunk), memory + stage * kStageBytes + kWeightBytes, barriers.full[stage],
              Keep::normal);
  }
  // Of all stages, for the first time.
  __device__ __forceinline__ void begin() const {
    prefetch_map(x);
    const int filled = min(kStages, share.chunks);
    for (int i = 0; i < filled; ++i) fetch_weights(i, i);
    let_next_start();  // its weights queue up behind these
    wait_for_previous();
    for (int i = 0; i < filled; ++i) fetch_x(i, i);
  }
  // Of a stage once the products with what it had are done. parity: of the times that it was filled before.
  __device__ __forceinline__ void again(int chunk, int stage, unsigned parity) const {
    barriers.empty[stage].wait(parity);
    fetch_weights(chunk, stage);
    fetch_x(chunk, stage);
  }
};

// A warpgroup's rows by the block's weights; then the sums take the place of the stages.
__device__ __forceinline__ void multiply_even(const SlimKernelArgs& args, const EvenCopies& copies, int group) {
  float sum[kEvenWeightRows / 8][4];
  SlimBarriers& barriers = copies.barriers;
  const int chunks = copies.share.chunks, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int stage = 0, before = 0;
  unsigned parity = 0, parity_before = 0;
  for (int i = 0; i < chunks; ++i) {
    barriers.full[stage].wait(parity);
    const std::uint32_t weights_at = copies.memory + stage * kStageBytes;
    const std::uint32_t x_at = weights_at + kWeightBytes + group * kGroupRows * kTileRowBytes;
    touch(sum);
    begin_products();
#pragma unroll
    for (int k = 0; k < kTileColumns / 16; ++k)
      multiply_224(sum, tile_descriptor(x_at + 32 * k, 16), tile_descriptor(weights_at + 32 * k, 16), i > 0 || k > 0);
    commit_products();
    if (i > 0) {
      wait_products<1>();
      if (lane == 0) barriers.empty[before].arrive();
      if (threadIdx.x == 0 && i - 1 + kStages < chunks) copies.again(i - 1 + kStages, before, parity_before);
      __syncwarp();
    }
    before = stage;
    parity_before = parity;
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  wait_products<0>();
  touch(sum);
  __syncthreads();  // all products are done
  const int row = group * kGroupRows + warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (row + 8 * half >= args.rows) continue;
    const std::uint32_t to = copies.memory + ((row + 8 * half) * kSumStride + lane % 4 * 2) * 4;
#pragma unroll
    for (int j = 0; j < kEvenWeightRows / 8; ++j) {
      store_shared(to + 32 * j, sum[j][2 * half]);
      store_shared(to + 32 * j + 4, sum[j][2 * half + 1]);
    }
  }
}

__global__ void __launch_bounds__(kConsumers, 1)
    even_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const SlimKernelArgs args) {
  extern __shared__ unsigned char unaligned[];
  __shared__ SlimBarriers barriers;
  const std::uint32_t memory = (shared_address(unaligned) + 1023) / 1024 * 1024;
  const SlimShare share(args, kEvenWeightRows, kTileColumns, static_cast<int>(blockIdx.x), 0);
  const EvenCopies copies{weights, x, share, args.block_rows, memory, barriers};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(kConsumers / 32);
    }
    publish_barriers();
  }
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler sees: all of a warp agree
  if (warp == 0) {
    if (threadIdx.x == 0) copies.begin();
    __syncwarp();
  }
  wait_for_previous();
  if (args.norm.squares != nullptr) RowNorms<EvenShape>::add_squares(args, barriers.squares);
  multiply_even(args, copies, warp / 4);
  __syncthreads();
  write_outputs_of<EvenShape, true, 1>(args, share, memory, barriers.squares);
}

}  // namespace

namespace hopper {

void even_gemm(const SlimArgs& args, cudaStream_t stream) {
  const auto rows = static_cast<int>(args.rows), inputs = static_cast<int>(args.inputs),
             outputs = static_cast<int>(args.outputs);
  MINISGL_CHECK(args.output == SkinnyOutput::gated && rows <= kRows, rows, " rows, or outputs that aren't gated");
  const int tiles = (2 * outputs + kEvenWeightRows - 1) / kEvenWeightRows;
  const CUtensorMap weights = tile_map(args.weights.data, 2 * outputs, inputs, kEvenWeightRows / 2, kTileColumns);
  const int block_rows = rows_of_blocks(rows, 1);
  const CUtensorMap x = tile_map(args.x, rows, inputs, block_rows, kTileColumns);
  const int bytes = std::max(kStages * kStageBytes, kSumBytes) + 1024;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(even_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_kernel(even_kernel, dim3(static_cast<unsigned>(tiles)), kConsumers, bytes, stream, weights, x,
                SlimKernelArgs{.bias = args.bias,
                               .y = args.y,
                               .output = args.output,
                               .stages = kStages,
                               .splits = 1,
                               .rows = rows,
                               .inputs = inputs,
                               .outputs = outputs,
                               .all_rows = rows,
                               .block_rows = block_rows,
                               .norm = args.norm,
                               .next = {},
                               .heads = {},
                               .scales = nullptr,
                               .x_scales = nullptr});
}

}  // namespace hopper
}  // namespace minisgl::cuda
