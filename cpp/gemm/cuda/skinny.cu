// Products of 1 to 16 rows. Bound by reading the weights once: their bytes over the read bandwidth is the floor.
//
// A block computes 16 outputs, or 8 pairs of gate and up: its warps cut the input dimension, each multiplies its
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
constexpr int kUnroll = 4;

// The weights of kUnroll steps from `step` on; zeros past the last.
struct WeightRun {
  uint4 w[kUnroll][2];

  __device__ __forceinline__ void load(const bf16* const (&row)[2], int step, int num_steps) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        w[u][half] =
            step + u < num_steps ? load_weights(row[half] + std::int64_t{step + u} * kStep) : make_uint4(0, 0, 0, 0);
      }
    }
  }
};

// gated: a tile's rows 0 to 7 are gates, 8 to 15 the ups of the same outputs. row_blocks: 1 for up to 8 rows of
// activations, 2 for up to 16.
template <int warps, bool gated, int row_blocks, typename Y>
__global__ void __launch_bounds__(warps * 32)
    skinny_kernel(const bf16* __restrict__ weights, const float* __restrict__ bias, const bf16* __restrict__ x,
                  Y* __restrict__ y, int rows, std::int64_t inputs, std::int64_t outputs) {
  constexpr int kOutputs = gated ? kTileOutputs / 2 : kTileOutputs;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int in_group = lane % 4, group = lane / 4;
  const std::int64_t first_output = std::int64_t{blockIdx.x} * kOutputs;
  let_next_start();

  const bf16* row[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t output = gated ? min(first_output + group, outputs - 1) + half * outputs
                                      : min(first_output + group + 8 * half, outputs - 1);
    row[half] = weights + output * inputs + in_group * 8;
  }
  const bf16* x_row[row_blocks];
#pragma unroll
  for (int b = 0; b < row_blocks; ++b)
    x_row[b] = x + std::int64_t{min(group + 8 * b, rows - 1)} * inputs + in_group * 8;

  // A warp takes every warps-th run of steps, so that a block reads memory in one direction. The first weights are on
  // their way before the kernel that makes x is done.
  const int num_steps = static_cast<int>(inputs / kStep);
  float sum[row_blocks][4] = {};
  WeightRun now, next;
  now.load(row, warp * kUnroll, num_steps);
  wait_for_previous();
  for (int run = warp * kUnroll; run < num_steps; run += warps * kUnroll) {
    next.load(row, run + warps * kUnroll, num_steps);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint4 first = now.w[u][0], second = now.w[u][1];
      const std::uint32_t low[4] = {first.x, second.x, first.y, second.y};
      const std::uint32_t high[4] = {first.z, second.z, first.w, second.w};
#pragma unroll
      for (int b = 0; b < row_blocks; ++b) {
        const uint4 v = run + u < num_steps ? *reinterpret_cast<const uint4*>(x_row[b] + std::int64_t{run + u} * kStep)
                                            : make_uint4(0, 0, 0, 0);
        mma_16816<bf16>(sum[b], low, v.x, v.y);
        mma_16816<bf16>(sum[b], high, v.z, v.w);
      }
    }
    now = next;
  }

  // A lane holds tile rows group and group + 8 for rows 2 * in_group and 2 * in_group + 1 of each block of 8.
  constexpr int kRows = 8 * row_blocks;
  __shared__ float shares[warps][kRows][kTileOutputs + 1];
#pragma unroll
  for (int b = 0; b < row_blocks; ++b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) shares[warp][8 * b + 2 * in_group + i % 2][group + 8 * (i / 2)] = sum[b][i];
  }
  __syncthreads();
  const auto total = [&](int r, int tile_row, std::int64_t weight_row) {
    float value = bias != nullptr ? bias[weight_row] : 0.0f;
    for (int k = 0; k < warps; ++k) value += shares[k][r][tile_row];
    return value;
  };
  for (int i = threadIdx.x; i < kRows * kOutputs; i += warps * 32) {
    const int r = i / kOutputs, o = i % kOutputs;
    const std::int64_t output = first_output + o;
    if (r >= rows || output >= outputs) continue;
    float value = total(r, o, output);
    if (gated) value = value / (1.0f + __expf(-value)) * total(r, o + 8, output + outputs);
    y[r * outputs + output] = from_float<Y>(value);
  }
}

template <bool gated, int row_blocks, typename Y>
void launch(const SkinnyArgs& args, cudaStream_t stream) {
  constexpr int outputs_per_block = gated ? kTileOutputs / 2 : kTileOutputs;
  const auto num_blocks = static_cast<unsigned>((args.outputs + outputs_per_block - 1) / outputs_per_block);
  // Where there are few blocks, more warps share the inputs of each.
  const bool narrow = num_blocks <= 160 && args.inputs >= 2048;
  const int warps = narrow ? 16 : 8;
  const auto kernel = narrow ? skinny_kernel<16, gated, row_blocks, Y> : skinny_kernel<8, gated, row_blocks, Y>;
  launch_kernel(kernel, dim3(num_blocks), warps * 32, 0, stream, static_cast<const bf16*>(args.weights), args.bias,
                static_cast<const bf16*>(args.x), static_cast<Y*>(args.y), args.rows, args.inputs, args.outputs);
}

template <bool gated, typename Y>
void launch_rows(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.rows <= 8) {
    launch<gated, 1, Y>(args, stream);
  } else {
    launch<gated, 2, Y>(args, stream);
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
    launch_rows<true, bf16>(args, stream);
  } else if (args.y_is_f32) {
    launch_rows<false, float>(args, stream);
  } else {
    launch_rows<false, bf16>(args, stream);
  }
}

}  // namespace minisgl::cuda
