// The part of a row of logits that one block of a team works on.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample_team.cuh"

namespace minisgl::cuda {

// A block's part of a row.
struct Slice {
  const float* logits;
  std::int32_t first, size;  // tokens

  // The index of a token in the slice, or -1.
  __device__ __forceinline__ std::int32_t index_of(std::int32_t token) const {
    return token >= first && token < first + size ? token - first : -1;
  }
};

// visit(token, logit) for all of a slice; several loads are in flight together.
template <typename Visit>
__device__ __forceinline__ void for_each_logit(const Slice& slice, const Visit& visit) {
  constexpr int kUnroll = 4, kWidth = 4, kStride = kSampleThreads * kWidth;
  std::int32_t start = 0;
  if (reinterpret_cast<std::uintptr_t>(slice.logits) % 16 == 0) {
    for (; start + kStride * kUnroll <= slice.size; start += kStride * kUnroll) {
      float4 values[kUnroll];
      const std::int32_t own = start + static_cast<std::int32_t>(threadIdx.x) * kWidth;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) values[u] = *reinterpret_cast<const float4*>(slice.logits + own + u * kStride);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const std::int32_t token = slice.first + own + u * kStride;
        visit(token, values[u].x);
        visit(token + 1, values[u].y);
        visit(token + 2, values[u].z);
        visit(token + 3, values[u].w);
      }
    }
  }
#pragma unroll 4
  for (std::int32_t i = start + static_cast<std::int32_t>(threadIdx.x); i < slice.size; i += kSampleThreads)
    visit(slice.first + i, slice.logits[i]);
}

}  // namespace minisgl::cuda
