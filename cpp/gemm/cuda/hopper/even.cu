// Gated products of 129 to 256 rows on compute capability 9.0, as slim.cuh says, but with x's rows as the rows of the
// tensor cores' tiles, 64 of them to a warpgroup: a block's weights are columns then, and 224 of them, half gates and
// half ups, lie more evenly on the processors than multiples of 128 (28672 of them on 128 of 132). Warpgroups with so
// many sums leave no registers for a warp that fetches: a thread of theirs does.
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

constexpr int kWeightBytes = kEvenWeightRows * kTileRowBytes;
constexpr int kOutputs = kEvenWeightRows / 2;  // of a block

// groups: warpgroups, each of `tiles` times 64 rows of x.
template <int groups, int tiles>
struct EvenShape {
  static constexpr int kTiles = tiles, kGroupRows = tiles * hopper::kGroupRows;
  static constexpr int kRows = groups * kGroupRows, kConsumers = groups * kGroup;
  static constexpr int kXBytes = kRows * kTileRowBytes, kStageBytes = kWeightBytes + kXBytes;
  static constexpr int kXStages = 216 * 1024 / kStageBytes;
  static constexpr int kWeightStages = (216 * 1024 - kXStages * kXBytes) / kWeightBytes;
  static constexpr int kBytes = kWeightStages * kWeightBytes + kXStages * kXBytes;  // weights, then x
  static constexpr int kOutputStride = (kOutputs + 8) * 2;  // bytes; lanes that write pairs meet in no bank
  static_assert(kRows * kOutputStride <= kBytes);
};

// The copies of a block, which one thread makes. Weights, which come from further away, have stages of their own.
template <typename S>
struct EvenCopies {
  static constexpr int kXBarriers = kMostStages / 2;  // the first of x's
  const CUtensorMap &weights, &x;
  const SlimShare& share;
  int block_rows;
  std::uint32_t memory;
  SlimBarriers& barriers;

  __device__ __forceinline__ std::uint32_t weights_at(int stage) const { return memory + stage * kWeightBytes; }
  __device__ __forceinline__ std::uint32_t x_at(int stage) const {
    return memory + S::kWeightStages * kWeightBytes + stage * S::kXBytes;
  }
  __device__ __forceinline__ Barrier& weights_full(int stage) const { return barriers.full[stage]; }
  __device__ __forceinline__ Barrier& weights_empty(int stage) const { return barriers.empty[stage]; }
  __device__ __forceinline__ Barrier& x_full(int stage) const { return barriers.full[kXBarriers + stage]; }
  __device__ __forceinline__ Barrier& x_empty(int stage) const { return barriers.empty[kXBarriers + stage]; }

  __device__ __forceinline__ void fetch_weights(int chunk, int stage) const {
    arrive_expecting(weights_full(stage), kWeightBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      copy_tile(weights, share.half_row[half], share.column_of(chunk), weights_at(stage) + half * (kWeightBytes / 2),
                weights_full(stage), Keep::briefly);
  }
  __device__ __forceinline__ void fetch_x(int chunk, int stage) const {
    arrive_expecting(x_full(stage), block_rows * kTileRowBytes);
    copy_tile(x, 0, share.column_of(chunk), x_at(stage), x_full(stage), Keep::normal);
  }
  // Of all stages, for the first time.
  __device__ __forceinline__ void begin() const {
    prefetch_map(x);
    for (int i = 0; i < min(S::kWeightStages, share.chunks); ++i) fetch_weights(i, i);
    let_next_start();  // its weights queue up behind these
    wait_for_previous();
    for (int i = 0; i < min(S::kXStages, share.chunks); ++i) fetch_x(i, i);
  }
};

// A warpgroup's rows by the block's weights.
template <typename S>
__device__ __forceinline__ void multiply_even(const EvenCopies<S>& copies, int group,
                                              float (&sum)[S::kTiles][kEvenWeightRows / 8][4]) {
  const int chunks = copies.share.chunks, lane = threadIdx.x % 32;
  Turn<S::kWeightStages> weights, weights_before;
  Turn<S::kXStages> x, x_before;
  for (int i = 0; i < chunks; ++i) {
    copies.weights_full(weights.stage).wait(weights.parity);
    copies.x_full(x.stage).wait(x.parity);
    const std::uint32_t weights_at = copies.weights_at(weights.stage);
    const std::uint32_t x_at = copies.x_at(x.stage) + group * S::kGroupRows * kTileRowBytes;
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) touch(sum[tile]);
    begin_products();
#pragma unroll
    for (int k = 0; k < kTileColumns / 16; ++k) {
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile)
        multiply_224(sum[tile], tile_descriptor(x_at + tile * hopper::kGroupRows * kTileRowBytes + 32 * k, 16),
                     tile_descriptor(weights_at + 32 * k, 16), i > 0 || k > 0);
    }
    commit_products();
    if (i > 0) {
      wait_products<1>();
      if (lane == 0) {
        copies.weights_empty(weights_before.stage).arrive();
        copies.x_empty(x_before.stage).arrive();
      }
      if (threadIdx.x == 0) {
        if (i - 1 + S::kWeightStages < chunks) {
          copies.weights_empty(weights_before.stage).wait(weights_before.parity);
          copies.fetch_weights(i - 1 + S::kWeightStages, weights_before.stage);
        }
        if (i - 1 + S::kXStages < chunks) {
          copies.x_empty(x_before.stage).wait(x_before.parity);
          copies.fetch_x(i - 1 + S::kXStages, x_before.stage);
        }
      }
      __syncwarp();
    }
    weights_before = weights;
    x_before = x;
    weights.advance();
    x.advance();
  }
  wait_products<0>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) touch(sum[tile]);
}

// A lane has the gates and the ups of the same outputs. Outputs take the place of the stages before they are written.
template <typename S>
__device__ __forceinline__ void write_gated(const SlimKernelArgs& args, const EvenCopies<S>& copies, int group,
                                            const float (&sum)[S::kTiles][kEvenWeightRows / 8][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_output = copies.share.first_output;
  const int column = lane % 4 * 2;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
    const int first = group * S::kGroupRows + tile * hopper::kGroupRows + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + 8 * half;
      if (row >= args.rows) continue;
      const float factor = args.norm.squares != nullptr ? RowNorms<S>::inverse(args, copies.barriers.squares, row) : 1;
      const std::uint32_t to = copies.memory + row * S::kOutputStride + column * 2;
#pragma unroll
      for (int j = 0; j < kOutputs / 8; ++j) {
        float y[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int output = min(first_output + 8 * j + column + e, args.outputs - 1);
          const float gate_bias = args.bias != nullptr ? __ldg(args.bias + output) : 0;
          const float up_bias = args.bias != nullptr ? __ldg(args.bias + args.outputs + output) : 0;
          y[e] = gated(sum[tile][j][2 * half + e] * factor + gate_bias,
                       sum[tile][j + kOutputs / 8][2 * half + e] * factor + up_bias);
        }
        store_shared(to + 16 * j, __uint_as_float(pack2<bf16>(y[0], y[1])));
      }
    }
  }
  __syncthreads();
  constexpr int kQuads = kOutputs / 4;  // of a row
  for (int i = threadIdx.x; i < args.rows * kQuads; i += S::kConsumers) {
    const int row = i / kQuads, place = i % kQuads * 4, output = first_output + place;
    if (output >= args.outputs) continue;
    const auto v = load_shared<uint2>(copies.memory + row * S::kOutputStride + place * 2);
    *reinterpret_cast<uint2*>(static_cast<bf16*>(args.y) + std::int64_t{row} * args.outputs + output) = v;
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kConsumers, 1)
    even_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap x,
                const SlimKernelArgs args) {
  extern __shared__ unsigned char unaligned[];
  __shared__ SlimBarriers barriers;
  const std::uint32_t memory = (shared_address(unaligned) + 1023) / 1024 * 1024;
  const SlimShare share(args, kEvenWeightRows, kTileColumns, static_cast<int>(blockIdx.x), 0);
  const EvenCopies<S> copies{weights, x, share, args.block_rows, memory, barriers};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kWeightStages; ++stage) {
      copies.weights_full(stage).init(1);
      copies.weights_empty(stage).init(S::kConsumers / 32);
    }
    for (int stage = 0; stage < S::kXStages; ++stage) {
      copies.x_full(stage).init(1);
      copies.x_empty(stage).init(S::kConsumers / 32);
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
  if (args.norm.squares != nullptr) RowNorms<S>::add_squares(args, barriers.squares);
  float sum[S::kTiles][kEvenWeightRows / 8][4];
  multiply_even<S>(copies, warp / 4, sum);
  __syncthreads();  // all products are done, and squares added up
  write_gated<S>(args, copies, warp / 4, sum);
}

template <typename S>
void launch_even(const SlimArgs& args, cudaStream_t stream) {
  const auto rows = static_cast<int>(args.rows), inputs = static_cast<int>(args.inputs),
             outputs = static_cast<int>(args.outputs);
  const int tiles = (2 * outputs + kEvenWeightRows - 1) / kEvenWeightRows;
  const CUtensorMap weights = tile_map(args.weights.data, 2 * outputs, inputs, kEvenWeightRows / 2, kTileColumns);
  const int block_rows = rows_of_blocks(rows, 1);
  const CUtensorMap x = tile_map(args.x, rows, inputs, block_rows, kTileColumns);
  constexpr int kBytes = S::kBytes + 1024;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(even_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  launch_kernel(even_kernel<S>, dim3(static_cast<unsigned>(tiles)), S::kConsumers, kBytes, stream, weights, x,
                SlimKernelArgs{.bias = args.bias,
                               .y = args.y,
                               .output = args.output,
                               .stages = S::kXStages,
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

}  // namespace

namespace hopper {

void even_gemm(const SlimArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.output == SkinnyOutput::gated && args.rows <= kMostManyRows, args.rows,
                " rows, or outputs that aren't gated");
  if (args.rows <= EvenShape<3, 1>::kRows) return launch_even<EvenShape<3, 1>>(args, stream);
  launch_even<EvenShape<2, 2>>(args, stream);
}

}  // namespace hopper
}  // namespace minisgl::cuda
