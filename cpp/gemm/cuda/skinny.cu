// Products of 1 to 16 rows. Bound by reading the weights once: their bytes over the read bandwidth is the floor.
//
// A block computes 16 outputs (or 16 pairs of gate and up): its warps cut the input dimension, each multiplies its
// share on the tensor cores with 16 weight rows as A and the activation rows as B, and shared memory adds the shares
// up. The order of the input dimension is free within a sum, so a lane takes 8 consecutive elements of a row with one
// 16-byte load, straight into the registers that the instruction wants; activations use the same order.
#include "core/cuda.h"
#include "core/cuda_launch.h"
#include "core/cuda_math.cuh"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kTileOutputs = 16;
constexpr int kStep = 32;  // inputs that a warp takes at once

__device__ __forceinline__ uint4 load_weights(const bf16* p) {
  return __ldcs(reinterpret_cast<const uint4*>(p));  // read once: not worth a place in the caches
}

// Steps whose weights are in flight together; twice that, since the next are loaded before these are used.
template <int tiles>
constexpr int kUnroll = tiles == 2 ? 2 : 4;

// The weights of kUnroll steps from `step` on; zeros past the last.
template <int tiles>
struct WeightRun {
  uint4 w[kUnroll<tiles>][tiles][2];

  __device__ __forceinline__ void load(const bf16* const (&row)[tiles][2], int step, int num_steps) {
#pragma unroll
    for (int u = 0; u < kUnroll<tiles>; ++u) {
      const bool valid = step + u < num_steps;
      const std::int64_t at = std::int64_t{step + u} * kStep;
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          w[u][t][half] = valid ? load_weights(row[t][half] + at) : make_uint4(0, 0, 0, 0);
      }
    }
  }
};

// tiles: 1, or 2 for gate and up. row_blocks: 1 for up to 8 rows, 2 for up to 16.
template <int warps, int tiles, int row_blocks, typename Y>
__global__ void __launch_bounds__(warps * 32)
    skinny_kernel(const bf16* __restrict__ weights, const float* __restrict__ bias, const bf16* __restrict__ x,
                  Y* __restrict__ y, int rows, std::int64_t inputs, std::int64_t outputs) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int in_group = lane % 4, group = lane / 4;
  const std::int64_t first_output = std::int64_t{blockIdx.x} * kTileOutputs;
  let_next_start();

  const bf16* row[tiles][2];
#pragma unroll
  for (int t = 0; t < tiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t output = min(first_output + group + 8 * half, outputs - 1) + t * outputs;
      row[t][half] = weights + output * inputs + in_group * 8;
    }
  }
  const bf16* x_row[row_blocks];
#pragma unroll
  for (int b = 0; b < row_blocks; ++b)
    x_row[b] = x + std::int64_t{min(group + 8 * b, rows - 1)} * inputs + in_group * 8;

  // A warp takes every warps-th run of steps, so that a block reads memory in one direction. The first weights are on
  // their way before the kernel that makes x is done.
  constexpr int unroll = kUnroll<tiles>;
  const int num_steps = static_cast<int>(inputs / kStep);
  float sum[tiles][row_blocks][4] = {};
  WeightRun<tiles> now, next;
  now.load(row, warp * unroll, num_steps);
  wait_for_previous();
  for (int run = warp * unroll; run < num_steps; run += warps * unroll) {
    next.load(row, run + warps * unroll, num_steps);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      uint4 v[row_blocks];
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        v[b] = run + u < num_steps ? *reinterpret_cast<const uint4*>(x_row[b] + std::int64_t{run + u} * kStep)
                                   : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int t = 0; t < tiles; ++t) {
        const uint4 first = now.w[u][t][0], second = now.w[u][t][1];
        const std::uint32_t low[4] = {first.x, second.x, first.y, second.y};
        const std::uint32_t high[4] = {first.z, second.z, first.w, second.w};
#pragma unroll
        for (int b = 0; b < row_blocks; ++b) {
          mma_16816<bf16>(sum[t][b], low, v[b].x, v[b].y);
          mma_16816<bf16>(sum[t][b], high, v[b].z, v[b].w);
        }
      }
    }
    now = next;
  }

  // A lane holds outputs group and group + 8 of rows 2 * in_group and 2 * in_group + 1 of each block of 8 rows.
  constexpr int kRows = 8 * row_blocks;
  __shared__ float shares[warps][tiles][kRows][kTileOutputs + 1];
#pragma unroll
  for (int t = 0; t < tiles; ++t) {
#pragma unroll
    for (int b = 0; b < row_blocks; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) shares[warp][t][8 * b + 2 * in_group + i % 2][group + 8 * (i / 2)] = sum[t][b][i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kTileOutputs; i += warps * 32) {
    const int r = i / kTileOutputs, o = i % kTileOutputs;
    const std::int64_t output = first_output + o;
    if (r >= rows || output >= outputs) continue;
    float total[tiles];
#pragma unroll
    for (int t = 0; t < tiles; ++t) {
      total[t] = bias != nullptr ? bias[output + t * outputs] : 0.0f;
      for (int k = 0; k < warps; ++k) total[t] += shares[k][t][r][o];
    }
    const float value = tiles == 2 ? total[0] / (1.0f + __expf(-total[0])) * total[tiles - 1] : total[0];
    y[r * outputs + output] = from_float<Y>(value);
  }
}

template <int tiles, int row_blocks, typename Y>
void launch(const SkinnyArgs& args, cudaStream_t stream) {
  const auto num_blocks = static_cast<unsigned>((args.outputs + kTileOutputs - 1) / kTileOutputs);
  // Where there are few blocks, more warps share the inputs of each.
  const bool narrow = num_blocks <= 160 && args.inputs >= 2048;
  const int warps = narrow ? 16 : 8;
  const auto kernel = narrow ? skinny_kernel<16, tiles, row_blocks, Y> : skinny_kernel<8, tiles, row_blocks, Y>;
  launch_kernel(kernel, dim3(num_blocks), warps * 32, 0, stream, static_cast<const bf16*>(args.weights), args.bias,
                static_cast<const bf16*>(args.x), static_cast<Y*>(args.y), args.rows, args.inputs, args.outputs);
}

template <int tiles, typename Y>
void launch_rows(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.rows <= 8) {
    launch<tiles, 1, Y>(args, stream);
  } else {
    launch<tiles, 2, Y>(args, stream);
  }
}

}  // namespace

bool skinny_gemm_fits(int rows, std::int64_t inputs) {
  return rows >= 1 && rows <= kMaxSkinnyRows && inputs % kStep == 0;
}

void skinny_gemm(const SkinnyArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(skinny_gemm_fits(args.rows, args.inputs), args.rows, " rows of ", args.inputs);
  MINISGL_CHECK(!args.gated || !args.y_is_f32, "gated products are bf16");
  if (args.gated) {
    launch_rows<2, bf16>(args, stream);
  } else if (args.y_is_f32) {
    launch_rows<1, float>(args, stream);
  } else {
    launch_rows<1, bf16>(args, stream);
  }
}

}  // namespace minisgl::cuda
