// Products of many rows of e4m3 with weights of e4m3. Bound by the tensor cores. Cut as slim.cuh says, with blocks of
// 128 rows beside one another.
//
// The tensor cores' own sums of e4m3 keep few bits: those of 128 inputs are added up in f32, with the scale that the
// block of weights has.
#include "gemm/cuda/hopper/slim.cuh"

namespace minisgl::cuda {
namespace {

using namespace hopper;

// d [64 x 128] f32 (+)= a · bᵀ of bytes of e4m3 in shared memory, 32 columns of each.
__device__ __forceinline__ void multiply_e4m3_128(float (&d)[16][4], std::uint64_t a, std::uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" MINISGL_REG_128 "}, %64, %65, p, 1, 1;\n}\n"
      : MINISGL_OUT_128
      : "l"(a), "l"(b), "r"(accumulate)
      : "memory");
}

template <bool blocks, int tiles>
struct WideStages : MatrixPlaces {
  static constexpr int kRows = 128;
  using Shape = SlimShape<2, kRows, tiles>;
  static constexpr int kBlocksPerProcessor = 1;
  static constexpr int kInputs = 128;  // of a stage
  static constexpr int kRowBytes = 128;
  static constexpr int kWeightBytes = Shape::kWeightRows * kRowBytes;
  static constexpr int kXTiles = 1, kXTileBytes = kRows * kRowBytes;
  static constexpr bool kManyRows = true, kByteRows = true;
  static constexpr int kStageBytes = kWeightBytes + kXTileBytes;
  static constexpr int kHalfBytes = kWeightBytes / 2;

  static __device__ __forceinline__ float factor(const SlimKernelArgs& args, const SlimShare& share, int row) {
    return blocks ? 1.0f : __ldg(args.scales + share.weight_row(args, row, Shape::kWeightRows));
  }
  static CUtensorMap weight_map(const void* data, int rows, int inputs) {
    return tile_map(data, rows, inputs, Shape::kWeightRows / 2, kInputs, true);
  }

  // The warpgroups take turns: while one adds up, the other's products are under way.
  static __device__ __forceinline__ void multiply(const SlimKernelArgs& args, const SlimShare& share, int group,
                                                  std::uint32_t memory, SlimBarriers& barriers,
                                                  float (&sum)[tiles][kRows / 8][4]) {
    const int lane = threadIdx.x % 32;
    const float* scales[tiles];
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = share.weight_row(args, (group * tiles + tile) * kGroupRows, Shape::kWeightRows);
      scales[tile] = args.scales + std::int64_t{row / static_cast<int>(kScaleBlock)} * scale_blocks(args.inputs) +
                     share.first_chunk;
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[tile][j][e] = 0.0f;
      }
    }
    float part[kRows / 8][4];
    int stage = 0;
    unsigned parity = 0;
    for (int i = 0; i < share.chunks; ++i) {
      barriers.full[stage].wait(parity);
      const std::uint32_t x_at = memory + stage * kStageBytes + kWeightBytes;
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        const float scale = blocks ? __ldg(scales[tile] + i) : 1.0f;
        const std::uint32_t weights_at = memory + stage * kStageBytes + (group * tiles + tile) * kGroupRows * kRowBytes;
        touch(part);
        begin_products();
#pragma unroll
        for (int k = 0; k < kInputs / 32; ++k)
          multiply_e4m3_128(part, tile_descriptor(weights_at + 32 * k, 16), tile_descriptor(x_at + 32 * k, 16), k > 0);
        commit_products();
        wait_products<0>();
        touch(part);
        if (tile == tiles - 1 && lane == 0) barriers.empty[stage].arrive();
#pragma unroll
        for (int j = 0; j < kRows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            sum[tile][j][e] = blocks ? fmaf(part[j][e], scale, sum[tile][j][e]) : sum[tile][j][e] + part[j][e];
        }
      }
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
  }
};

}  // namespace

// What was measured on an H200.
SlimTuning wide_tuning(const WideArgs& args) {
  constexpr std::int64_t kProcessors = 132;
  const std::int64_t weight_rows = args.outputs * (args.output == SkinnyOutput::gated ? 2 : 1);
  const std::int64_t blocks = (weight_rows + 127) / 128 * ((args.rows + 127) / 128);
  SlimTuning tuning{.weight_rows = 2 * blocks > 3 * kProcessors ? 256 : 128, .splits = 1, .shared_bytes = 216 * 1024};
  if (2 * blocks <= kProcessors && args.inputs >= 1024) tuning.splits = 2;
  return tuning;
}

void wide_gemm(const WideArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  const SlimArgs slim{.weights = args.weights,
                      .bias = args.bias,
                      .x = args.x,
                      .y = args.y,
                      .output = args.output,
                      .rows = args.rows,
                      .inputs = args.inputs,
                      .outputs = args.outputs};
  const bool by_rows = args.weights.format == WeightFormat::e4m3_rows;
  if (tuning.weight_rows == 256) {
    by_rows ? launch_slim<WideStages<false, 2>>(slim, tuning, stream, args.x_scales)
            : launch_slim<WideStages<true, 2>>(slim, tuning, stream, args.x_scales);
  } else {
    by_rows ? launch_slim<WideStages<false, 1>>(slim, tuning, stream, args.x_scales)
            : launch_slim<WideStages<true, 1>>(slim, tuning, stream, args.x_scales);
  }
}

}  // namespace minisgl::cuda
