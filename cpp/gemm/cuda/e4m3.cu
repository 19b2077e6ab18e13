// Weights and activations to e4m3 and back.
#include <cuda_fp8.h>

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/runtime.h"
#include "gemm/cuda/e4m3.cuh"
#include "gemm/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 16;  // columns whose bytes lie in an order of their own
constexpr float kMostE4m3 = 448.0f;

__device__ __forceinline__ std::uint32_t to_e4m3x2(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

// 16 columns of a file's bytes, in the order of e4m3_place().
__global__ void place_kernel(const uint4* raw, std::int64_t groups, uint4* to) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < groups;
       i += std::int64_t{gridDim.x} * kThreads) {
    const uint4 v = raw[i];
    const auto pairs = [](std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
      return __byte_perm(low, high, selector);
    };
    // Columns 2 q and 2 q + 1 come from one word, 2 q + 8 and 2 q + 9 from the word two further on.
    to[i] =
        make_uint4(pairs(v.x, v.z, 0x5140), pairs(v.x, v.z, 0x7362), pairs(v.y, v.w, 0x5140), pairs(v.y, v.w, 0x7362));
  }
}

// The scale of a group of columns of a row.
__device__ __forceinline__ float scale_of(const float* scales, bool blocks, std::int64_t row, std::int64_t column,
                                          std::int64_t cols) {
  return blocks ? scales[row / kScaleBlock * scale_blocks(cols) + column / kScaleBlock] : scales[row];
}

__global__ void widen_kernel(const uint4* weights, const float* scales, bool blocks, std::int64_t groups,
                             std::int64_t cols, uint4* y) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < groups;
       i += std::int64_t{gridDim.x} * kThreads) {
    const uint4 v = weights[i];
    const float scale = scale_of(scales, blocks, i * kGroup / cols, i * kGroup % cols, cols);
    const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
    std::uint32_t low[4], high[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      std::uint32_t pairs[2];
      widen_e4m3(words[q], pairs[0], pairs[1]);
      const auto scaled = [&](std::uint32_t pair) {
        return pack2<bf16>(__uint_as_float(pair << 16) * scale, __uint_as_float(pair & 0xffff0000u) * scale);
      };
      low[q] = scaled(pairs[0]);
      high[q] = scaled(pairs[1]);
    }
    y[2 * i] = make_uint4(low[0], low[1], low[2], low[3]);
    y[2 * i + 1] = make_uint4(high[0], high[1], high[2], high[3]);
  }
}

int blocks_for(std::int64_t items) {
  return static_cast<int>(std::clamp<std::int64_t>((items + kThreads - 1) / kThreads, 1, 4096));
}

// 16 neighbouring columns as floats.
struct Columns {
  float v[kGroup];

  __device__ __forceinline__ void load(const uint4* row, int group) {
    const uint4 low = row[2 * group], high = row[2 * group + 1];
    const std::uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[2 * k] = __uint_as_float(words[k] << 16);
      v[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
    }
  }
  __device__ __forceinline__ float most() const {
    float most = 0.0f;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) most = fmaxf(most, fabsf(v[k]));
    return most;
  }
  // In the order of e4m3_place().
  __device__ __forceinline__ uint4 bytes(float factor) const {
    std::uint32_t words[4];
#pragma unroll
    for (int q = 0; q < 4; ++q)
      words[q] = to_e4m3x2(v[2 * q] * factor, v[2 * q + 8] * factor) |
                 to_e4m3x2(v[2 * q + 1] * factor, v[2 * q + 9] * factor) << 16;
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

__device__ __forceinline__ float block_max(float x, float* shared) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_max(threadIdx.x % 32 < kThreads / 32 ? shared[threadIdx.x % 32] : 0.0f);
  __syncthreads();
  return x;
}
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_sum(threadIdx.x % 32 < kThreads / 32 ? shared[threadIdx.x % 32] : 0.0f);
  __syncthreads();
  return x;
}

// What a row's largest magnitude is to become 448: 0 for rows of zeros.
__device__ __forceinline__ float factor_for(float most) {
  return most > 0.0f ? kMostE4m3 / most : 0.0f;
}

// A block a row. Its values stay in registers where there are at most kHeld groups for a thread; more are read again.
__global__ void __launch_bounds__(kThreads) quantize_kernel(const QuantizeArgs args) {
  constexpr int kHeld = 2;
  __shared__ float shared[kThreads / 32];
  const std::int64_t row = blockIdx.x;
  const int groups = static_cast<int>(args.cols / kGroup);
  const auto* x = reinterpret_cast<const uint4*>(static_cast<const bf16*>(args.x) + row * args.cols);
  auto* to = reinterpret_cast<uint4*>(args.data + row * args.cols);
  const auto scaled = [&](Columns& columns, int group) {
    if (args.norm == nullptr) return;
#pragma unroll
    for (int k = 0; k < kGroup / 4; ++k) {
      const float4 weight = __ldg(reinterpret_cast<const float4*>(args.norm) + group * (kGroup / 4) + k);
      columns.v[4 * k] *= weight.x;
      columns.v[4 * k + 1] *= weight.y;
      columns.v[4 * k + 2] *= weight.z;
      columns.v[4 * k + 3] *= weight.w;
    }
  };
  wait_for_previous();
  let_next_start();
  Columns held[kHeld];
  float most = 0.0f, squares = 0.0f;
  const auto take = [&](Columns& columns, int group) {
    columns.load(x, group);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) squares += columns.v[k] * columns.v[k];
    scaled(columns, group);
    most = fmaxf(most, columns.most());
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int group = static_cast<int>(threadIdx.x) + h * kThreads;
    if (group < groups) take(held[h], group);
  }
  for (int group = static_cast<int>(threadIdx.x) + kHeld * kThreads; group < groups; group += kThreads) {
    Columns columns;
    take(columns, group);
  }
  most = block_max(most, shared);
  const float inverse =
      args.norm != nullptr ? rsqrtf(block_sum(squares, shared) / static_cast<float>(args.cols) + args.eps) : 1.0f;
  const float factor = factor_for(most);
  if (threadIdx.x == 0) args.scales[row] = most / kMostE4m3 * inverse;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int group = static_cast<int>(threadIdx.x) + h * kThreads;
    if (group < groups) to[group] = held[h].bytes(factor);
  }
  for (int group = static_cast<int>(threadIdx.x) + kHeld * kThreads; group < groups; group += kThreads) {
    Columns columns;
    columns.load(x, group);
    scaled(columns, group);
    to[group] = columns.bytes(factor);
  }
}

}  // namespace

void place_e4m3(const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* y, cudaStream_t stream) {
  const std::int64_t groups = rows * cols / kGroup;
  place_kernel<<<blocks_for(groups), kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(raw), groups,
                                                            reinterpret_cast<uint4*>(y));
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void widen_weights(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, void* y, cudaStream_t stream) {
  MINISGL_CHECK(is_e4m3(weights.format) && cols % kGroup == 0, cols, " columns");
  const std::int64_t groups = rows * cols / kGroup;
  widen_kernel<<<blocks_for(groups), kThreads, 0, stream>>>(
      static_cast<const uint4*>(weights.data), static_cast<const float*>(weights.scales),
      weights.format == WeightFormat::e4m3_blocks, groups, cols, static_cast<uint4*>(y));
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void quantize_rows(const QuantizeArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.cols % kGroup == 0, args.cols, " columns");
  if (args.rows == 0) return;
  launch_kernel(quantize_kernel, dim3(static_cast<unsigned>(args.rows)), kThreads, 0, stream, args);
}

}  // namespace minisgl::cuda
