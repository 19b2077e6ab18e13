// Weights and activations to e4m3 and back.
#include <cuda_fp8.h>

#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/processors.h"
#include "core/cuda/runtime.h"
#include "gemm/cuda/e4m3.cuh"
#include "gemm/cuda/launch.h"
#include "gemm/cuda/quantised.h"

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

// 16 neighbouring columns, in bf16.
struct Columns {
  uint4 low, high;

  __device__ __forceinline__ void load(const uint4* row, int group) {
    low = row[2 * group];
    high = row[2 * group + 1];
  }
  __device__ __forceinline__ void values(float (&v)[kGroup]) const {
    const std::uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[2 * k] = __uint_as_float(words[k] << 16);
      v[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
    }
  }
  // These as gates of those of `ups`.
  __device__ __forceinline__ void gate(const Columns& ups) {
    float gates[kGroup], up[kGroup];
    values(gates);
    ups.values(up);
    std::uint32_t words[8];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) gates[k] = __fdividef(gates[k], 1.0f + __expf(-gates[k])) * up[k];
#pragma unroll
    for (int k = 0; k < 8; ++k) words[k] = pack2<bf16>(gates[2 * k], gates[2 * k + 1]);
    low = make_uint4(words[0], words[1], words[2], words[3]);
    high = make_uint4(words[4], words[5], words[6], words[7]);
  }
};

__device__ __forceinline__ float most_of(const float (&v)[kGroup]) {
  float most = 0.0f;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) most = fmaxf(most, fabsf(v[k]));
  return most;
}

// 16 columns in the order of e4m3_place().
__device__ __forceinline__ uint4 bytes_of(const float (&v)[kGroup], float factor) {
  std::uint32_t words[4];
#pragma unroll
  for (int q = 0; q < 4; ++q)
    words[q] = to_e4m3x2(v[2 * q] * factor, v[2 * q + 8] * factor) |
               to_e4m3x2(v[2 * q + 1] * factor, v[2 * q + 9] * factor) << 16;
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// What a row's largest magnitude is to become 448: 0 for rows of zeros.
__device__ __forceinline__ float factor_for(float most) {
  return most > 0.0f ? kMostE4m3 / most : 0.0f;
}

enum class QuantizeForm { plain, normed, gated };

// The columns of a thread, `held` groups of them, stay in registers, and so do the norm's weights of one; of more than
// that columns are read again. A block takes rows in turn. Bound by the bytes of x and of what is written.
template <QuantizeForm form, int held>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const QuantizeArgs args) {
  constexpr bool gated = form == QuantizeForm::gated, normed = form == QuantizeForm::normed;
  __shared__ float2 shares[2][kThreads / 32];  // of a warp: the largest magnitude, the sum of squares
  const int groups = static_cast<int>(args.cols / kGroup), own = static_cast<int>(threadIdx.x);
  const auto load_weights = [&](int group, float (&weights)[kGroup]) {
#pragma unroll
    for (int k = 0; k < kGroup / 4; ++k) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(args.norm) + group * (kGroup / 4) + k);
      weights[4 * k] = four.x;
      weights[4 * k + 1] = four.y;
      weights[4 * k + 2] = four.z;
      weights[4 * k + 3] = four.w;
    }
  };
  float kept_weights[kGroup];
  if (normed && held == 1 && own < groups) load_weights(own, kept_weights);
  // Times the norm's weights.
  const auto scaled = [&](const Columns& columns, int group, float (&v)[kGroup]) {
    columns.values(v);
    if constexpr (!normed) return;
    float weights[kGroup];
    if (held == 1 && group == own) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) weights[k] = kept_weights[k];
    } else {
      load_weights(group, weights);
    }
#pragma unroll
    for (int k = 0; k < kGroup; ++k) v[k] *= weights[k];
  };
  wait_for_previous();
  let_next_start();
  int buffer = 0;
  for (std::int64_t row = blockIdx.x; row < args.rows; row += gridDim.x, buffer ^= 1) {
    const auto* x =
        reinterpret_cast<const uint4*>(static_cast<const bf16*>(args.x) + row * args.cols * (gated ? 2 : 1));
    auto* to = reinterpret_cast<uint4*>(args.data + row * args.cols);
    const auto load = [&](Columns& columns, int group) {
      columns.load(x, group);
      if constexpr (gated) {
        Columns ups;
        ups.load(x, group + groups);
        columns.gate(ups);
      }
    };
    float most = 0.0f, squares = 0.0f;
    const auto look_at = [&](const Columns& columns, int group) {
      float v[kGroup];
      if constexpr (normed) {
        columns.values(v);
#pragma unroll
        for (int k = 0; k < kGroup; ++k) squares += v[k] * v[k];
      }
      scaled(columns, group, v);
      most = fmaxf(most, most_of(v));
    };
    Columns kept[held];
#pragma unroll
    for (int h = 0; h < held; ++h)
      if (own + h * kThreads < groups) load(kept[h], own + h * kThreads);
#pragma unroll
    for (int h = 0; h < held; ++h)
      if (own + h * kThreads < groups) look_at(kept[h], own + h * kThreads);
    for (int group = own + held * kThreads; group < groups; group += kThreads) {
      Columns columns;
      load(columns, group);
      look_at(columns, group);
    }
    most = warp_max(most);
    if constexpr (normed) squares = warp_sum(squares);
    if (threadIdx.x % 32 == 0) shares[buffer][threadIdx.x / 32] = make_float2(most, squares);
    __syncthreads();  // of the other buffer all have read
    squares = 0.0f;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) {
      most = fmaxf(most, shares[buffer][w].x);
      squares += shares[buffer][w].y;
    }
    const float inverse = normed ? rsqrtf(squares / static_cast<float>(args.cols) + args.eps) : 1.0f;
    const float factor = factor_for(most);
    if (threadIdx.x == 0) args.scales[row] = most / kMostE4m3 * inverse;
    const auto store = [&](const Columns& columns, int group) {
      float v[kGroup];
      scaled(columns, group, v);
      to[group] = bytes_of(v, factor);
    };
#pragma unroll
    for (int h = 0; h < held; ++h)
      if (own + h * kThreads < groups) store(kept[h], own + h * kThreads);
    for (int group = own + held * kThreads; group < groups; group += kThreads) {
      Columns columns;
      load(columns, group);
      store(columns, group);
    }
  }
}

template <QuantizeForm form>
void launch_quantize(const QuantizeArgs& args, cudaStream_t stream) {
  // As many as are on processors at once: more of them only read the norm's weights again.
  const dim3 blocks(static_cast<unsigned>(std::min<std::int64_t>(args.rows, 8 * num_processors())));
  if (args.cols <= kThreads * kGroup) return launch_kernel(quantize_kernel<form, 1>, blocks, kThreads, 0, stream, args);
  launch_kernel(quantize_kernel<form, 4>, blocks, kThreads, 0, stream, args);
}

}  // namespace

void place_e4m3(const std::byte* raw, std::int64_t rows, std::int64_t cols, std::byte* y, cudaStream_t stream) {
  const std::int64_t groups = rows * cols / kGroup;
  place_kernel<<<blocks_for(groups), kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(raw), groups,
                                                            reinterpret_cast<uint4*>(y));
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void widen_weights(const DeviceWeights& weights, std::int64_t rows, std::int64_t cols, void* y, cudaStream_t stream) {
  if (is_quantised(weights.format)) return unpack_quantised(weights, rows, cols, y, stream);
  MINISGL_CHECK(is_e4m3(weights.format) && cols % kGroup == 0, cols, " columns");
  const std::int64_t groups = rows * cols / kGroup;
  widen_kernel<<<blocks_for(groups), kThreads, 0, stream>>>(
      static_cast<const uint4*>(weights.data), static_cast<const float*>(weights.scales),
      weights.format == WeightFormat::e4m3_blocks, groups, cols, static_cast<uint4*>(y));
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void quantize_rows(const QuantizeArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.cols % kGroup == 0, args.cols, " columns");
  MINISGL_CHECK(args.norm == nullptr || !args.gated, "a norm of what is gated");
  if (args.rows == 0) return;
  if (args.gated) return launch_quantize<QuantizeForm::gated>(args, stream);
  if (args.norm != nullptr) return launch_quantize<QuantizeForm::normed>(args, stream);
  launch_quantize<QuantizeForm::plain>(args, stream);
}

}  // namespace minisgl::cuda
