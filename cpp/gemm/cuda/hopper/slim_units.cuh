// Products of few rows, and of some tens, by quantised weights, which become bf16 in the registers that the tensor
// cores read: the values that unpack_quantised() writes.
#pragma once

#include "gemm/cuda/hopper/product_8.cuh"
#include "gemm/cuda/hopper/slim.cuh"
#include "gemm/cuda/quantised_form.cuh"

namespace minisgl::cuda::hopper {

template <typename Form, int n>
struct UnitStages {
  using Shape = SlimShape<2, n>;
  static constexpr int kBlocksPerProcessor = n <= 64 ? 2 : 1;
  static constexpr int kInputs = static_cast<int>(kUnitColumns);  // of a stage
  static constexpr int kHalfUnits = Shape::kWeightRows / 2 / static_cast<int>(kUnitRows);
  static constexpr int kHalfBytes = kHalfUnits * Form::kBytes;
  static constexpr int kWeightBytes = (2 * kHalfBytes + 1023) / 1024 * 1024;  // x lies at a multiple of 1024
  static constexpr int kXTiles = 2, kXTileBytes = n * kTileRowBytes;
  static constexpr bool kManyRows = false, kByteRows = false;
  static constexpr int kStageBytes = kWeightBytes + kXTiles * kXTileBytes;

  static __device__ __forceinline__ float factor(const SlimKernelArgs&, const SlimShare&, int) { return 1.0f; }
  static CUtensorMap weight_map(const void* data, int rows, int inputs) {
    return unit_map(data, num_units(rows, 1), num_units(1, inputs), Form::kBytes, kHalfUnits);
  }
  static __device__ __forceinline__ int map_row(int row) { return row / static_cast<int>(kUnitRows); }
  static __device__ __forceinline__ int map_column(int column) { return column / kInputs * (Form::kBytes / 8); }

  // Half a stage, two runs, is converted while the products of the half before are under way.
  static __device__ __forceinline__ void multiply(const SlimKernelArgs& args, const SlimShare& share, int group,
                                                  std::uint32_t memory, SlimBarriers& barriers,
                                                  float (&sums)[1][n / 8][4]) {
    float (&sum)[n / 8][4] = sums[0];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const std::uint32_t units_at = memory + (group * 8 + warp * 2) * Form::kBytes;
    std::uint32_t a[2][4][4];
    int stage = 0, before = 0;
    unsigned parity = 0;
    for (int i = 0; i < share.chunks; ++i) {
      barriers.full[stage].wait(parity);
      const std::uint32_t x_at = memory + stage * kStageBytes + kWeightBytes;
      RowShare<Form> words[2];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        words[u].load(lane, [at = units_at + stage * kStageBytes + u * Form::kBytes]<typename T>(int byte) {
          return load_shared<T>(at + byte);
        });
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        wait_products<1>();  // those that read what is converted now
        if (half == 1 && i > 0 && lane == 0) barriers.empty[before].arrive();
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const std::uint32_t scales_at =
              units_at + stage * kStageBytes + u * Form::kBytes + Form::kScalesAt + lane / 4 * Form::kScaleRowBytes;
#pragma unroll
          for (int run = 0; run < 2; ++run) {
            const int j = 2 * half + run;
            std::uint32_t integers[2];
            words[u].bytes(j, integers);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const GroupScale<Form> of = scale_of<Form>((32 * j + 16 * h) / Form::kGroup, [&]<typename T>(int byte) {
                return load_shared<T>(scales_at + byte);
              });
#pragma unroll
              for (int w = 0; w < 2; ++w) a[half][2 * run + h][2 * w + u] = value_pair(integers[w], h, of);
            }
          }
        }
        touch(sum);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          Product<bf16, n>::registers_rows(sum, a[half][k], tile_descriptor(x_at + half * kXTileBytes + 32 * k, 16),
                                           i > 0 || half > 0 || k > 0);
        }
        commit_products();
      }
      before = stage;
      if (++stage == args.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    wait_products<0>();
    touch(sum);
  }
};

template <typename Form>
void launch_units(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream) {
  if (args.rows <= 8) return launch_slim<UnitStages<Form, 8>>(args, tuning, stream);
  if (args.rows <= 16) return launch_slim<UnitStages<Form, 16>>(args, tuning, stream);
  if (args.rows <= 32) return launch_slim<UnitStages<Form, 32>>(args, tuning, stream);
  if (args.rows <= 64) return launch_slim<UnitStages<Form, 64>>(args, tuning, stream);
  return launch_slim<UnitStages<Form, 128>>(args, tuning, stream);
}

}  // namespace minisgl::cuda::hopper
