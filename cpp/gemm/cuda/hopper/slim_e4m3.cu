// Products of few rows, and of some tens, with weights in e4m3, which become bf16 in the registers that the tensor
// cores read.
#include "gemm/cuda/e4m3.cuh"
#include "gemm/cuda/hopper/product_8.cuh"
#include "gemm/cuda/hopper/slim.cuh"

namespace minisgl::cuda {
namespace {

using namespace hopper;

template <int groups, int n, bool blocks>
struct ByteStages : MatrixPlaces {
  using Shape = SlimShape<groups, n>;
  // What is converted and, of blocks, a stage's sums take registers.
  static constexpr int kBlocksPerProcessor = groups == 1 ? (n <= 16 ? 4 : 2) : n <= (blocks ? 16 : 64) ? 2 : 1;
  static constexpr int kInputs = 128;  // of a stage, which share the scales of blocks
  static constexpr int kRowBytes = 128;
  static constexpr int kWeightBytes = Shape::kWeightRows * kRowBytes;
  static constexpr int kXTiles = 2, kXTileBytes = n * kTileRowBytes;
  static constexpr bool kManyRows = false, kByteRows = false;
  static constexpr int kStageBytes = kWeightBytes + kXTiles * kXTileBytes;
  static constexpr int kHalfBytes = kWeightBytes / 2;

  static __device__ __forceinline__ float factor(const SlimKernelArgs& args, const SlimShare& share, int row) {
    return blocks ? 1.0f : __ldg(args.scales + share.weight_row(args, row, Shape::kWeightRows));
  }
  static CUtensorMap weight_map(const void* data, int rows, int inputs) {
    return tile_map(data, rows, inputs, Shape::kWeightRows / 2, kInputs, true);
  }

  // Half a stage, 64 inputs, is converted while the products of the half before are under way. The products of a stage
  // are sums of their own where they have a scale of their own.
  static __device__ __forceinline__ void multiply(const SlimKernelArgs& args, const SlimShare& share, int group,
                                                  std::uint32_t memory, SlimBarriers& barriers,
                                                  float (&sums)[1][n / 8][4]) {
    float (&sum)[n / 8][4] = sums[0];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    // ldmatrix: lanes 0 to 15 give rows of the first 16 bytes, the others of the next.
    const int tile_row = group * kGroupRows + warp * 16 + lane % 16, column = lane / 16;
    const std::uint32_t row_at = memory + tile_row * kRowBytes;
    const int swizzle = tile_row % 8;
    const float* scales = nullptr;
    if constexpr (blocks) {
      const int row = share.weight_row(args, group * kGroupRows + warp * 16, Shape::kWeightRows);
      scales = args.scales + std::int64_t{row / static_cast<int>(kScaleBlock)} * scale_blocks(args.inputs) +
               share.first_chunk;
    }
    float part[blocks ? n / 8 : 1][4];
    float scale = 0.0f;
    std::uint32_t a[2][4][4];
    const auto add_part = [&] {
#pragma unroll
      for (int j = 0; j < n / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[j][e] += part[blocks ? j : 0][e] * scale;
      }
    };
    if constexpr (blocks) {
#pragma unroll
      for (int j = 0; j < n / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[j][e] = 0.0f;
      }
    }
    int stage = 0, before = 0;
    unsigned parity = 0;
    for (int i = 0; i < share.chunks; ++i) {
      const float next_scale = blocks ? __ldg(scales + i) : 0.0f;
      barriers.full[stage].wait(parity);
      const std::uint32_t x_at = memory + stage * kStageBytes + kWeightBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t words[2][4];
#pragma unroll
        for (int k = 0; k < 2; ++k)
          ldmatrix_x4(words[k], row_at + stage * kStageBytes + (((4 * half + 2 * k + column) ^ swizzle) << 4));
        wait_products<1>();  // those that read what is converted now
        if (half == 1 && i > 0 && lane == 0) barriers.empty[before].arrive();
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {  // words 0 and 1: rows of the first 16 inputs, 2 and 3: of the next
            std::uint32_t (&to)[4] = a[half][2 * k + m];
            widen_e4m3(words[k][2 * m], to[0], to[2]);
            widen_e4m3(words[k][2 * m + 1], to[1], to[3]);
          }
        }
        const auto multiply_half = [&](auto& to) {
          touch(to);
          begin_products();
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            Product<bf16, n>::registers_rows(to, a[half][k], tile_descriptor(x_at + half * kXTileBytes + 32 * k, 16),
                                             half > 0 || k > 0 || (!blocks && i > 0));
          }
          commit_products();
        };
        if constexpr (blocks) {
          if (half == 0) {
            wait_products<0>();
            touch(part);
            if (i > 0) add_part();
            scale = next_scale;
          }
          multiply_half(part);
        } else {
          multiply_half(sum);
        }
      }
      before = stage;
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wait_products<0>();
    if constexpr (blocks) {
      touch(part);
      add_part();
    } else {
      touch(sum);
    }
  }
};
template <int groups, int n>
using RowScaled = ByteStages<groups, n, false>;
template <int groups, int n>
using BlockScaled = ByteStages<groups, n, true>;

template <template <int, int> typename Stages, int groups>
void launch_rows(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (args.rows <= 8) return launch_slim<Stages<groups, 8>>(args, tuning, stream);
  if (args.rows <= 16) return launch_slim<Stages<groups, 16>>(args, tuning, stream);
  if (args.rows <= 32) return launch_slim<Stages<groups, 32>>(args, tuning, stream);
  if (args.rows <= 64) return launch_slim<Stages<groups, 64>>(args, tuning, stream);
  return launch_slim<Stages<groups, 128>>(args, tuning, stream);
}

template <int groups>
void launch_scales(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (args.weights.format == WeightFormat::e4m3_rows) {
    launch_rows<RowScaled, groups>(args, tuning, stream);
  } else {
    launch_rows<BlockScaled, groups>(args, tuning, stream);
  }
}

}  // namespace

// What was measured on an H200. A warp converts slowly: many of them are wanted, of two blocks or more on a processor.
SlimTuning slim_e4m3_tuning(const SlimArgs& args) {
  constexpr std::int64_t kEnough = 180, kMany = 264, kThree = 288;  // blocks of 64 weight rows
  const std::int64_t weight_rows = args.outputs * (args.output == SkinnyOutput::gated ? 2 : 1);
  const std::int64_t blocks = (weight_rows + kGroupRows - 1) / kGroupRows;
  const bool few = args.rows <= 32, by_rows = args.weights.format == WeightFormat::e4m3_rows;
  const bool has_heads = args.heads.num_heads > 0;
  SlimTuning tuning;
  if (has_heads || ((few || by_rows) && blocks > kMany)) tuning.weight_rows = 2 * kGroupRows;
  for (const int splits : {2, 3, 4, 6, 8})
    if (blocks * tuning.splits < kEnough && splits * 256 <= args.inputs) tuning.splits = splits;
  if (has_heads) {
    if (few && tuning.splits == 2 && args.inputs >= 1024) tuning.splits = 4;
    if (!few) tuning.shared_bytes *= 2;
  } else if (args.rows <= 8 && blocks * (tuning.splits + 1) <= kThree && tuning.splits > 1 && tuning.splits < 4 &&
             (tuning.splits + 1) * 256 <= args.inputs) {
    ++tuning.splits;
    tuning.shared_bytes = 72 * 1024;  // three blocks of a processor
  }
  return tuning;
}

void slim_e4m3_gemm(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (tuning.weight_rows == 128) return launch_scales<2>(args, tuning, stream);
  launch_scales<1>(args, tuning, stream);
}

}  // namespace minisgl::cuda
