// The softmax of prefill's consumers, in pieces that run beside the products. The base of its exponents follows the
// greatest score only when that is greater by more than kSlack: so all that was weighed must seldom shrink.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda::hopper {

// Scores that the two rows of a lane don't see become -inf.
template <int blocks>
__device__ __forceinline__ void hide(float (&score)[blocks][4], std::int32_t first, const Visible& visible) {
  const std::int32_t own = first + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < blocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int32_t position = own + 8 * j + i % 2;
      if (position < visible.low[i / 2] || position >= visible.high[i / 2]) score[j][i] = -INFINITY;
    }
  }
}

// Of a lane's two rows; logarithms are of base 2. A row's weights don't depend on the rows beside it.
struct RollingSoftmax {
  static constexpr float kSlack = 8.0f;  // weights up to 2^8, for which f16 has room

  float base[2];  // -inf before the first score
  float sum[2];   // this lane's share, over the base

  __device__ void clear() {
    base[0] = base[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // Moves the bases to a tile's scores that are greater by more than `slack`. Whether a row's of this warp has moved:
  // then all that was weighed must shrink; `sum` does here.
  template <int blocks>
  __device__ __forceinline__ bool follow(const float (&score)[blocks][4], float scale_log2, float slack,
                                         float (&shrink)[2]) {
    float top[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float even = score[0][2 * half], odd = score[0][2 * half + 1];
#pragma unroll
      for (int j = 1; j < blocks; ++j) {
        even = fmaxf(even, score[j][2 * half]);
        odd = fmaxf(odd, score[j][2 * half + 1]);
      }
      float greatest = fmaxf(even, odd);
      greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, 1));
      top[half] = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, 2)) * scale_log2;
    }
    if (!__any_sync(0xffffffffu, top[0] > base[0] + slack || top[1] > base[1] + slack)) return false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float to = top[half] > base[half] + slack ? top[half] : base[half];
      shrink[half] = exp2_fast(base[half] - (to == -INFINITY ? 0.0f : to));
      base[half] = to;
      sum[half] *= shrink[half];
    }
    return true;
  }

  // Scores of 8 columns each become weights: the blocks [from, to).
  template <int from, int to, int blocks>
  __device__ __forceinline__ void weigh(float (&score)[blocks][4], float scale_log2) {
    float over[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) over[half] = base[half] == -INFINITY ? 0.0f : base[half];  // weights of 0
#pragma unroll
    for (int j = from; j < to; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[j][i] = exp2_fast(score[j][i] * scale_log2 - over[i / 2]);
        sum[i / 2] += score[j][i];
      }
    }
  }
};

}  // namespace minisgl::cuda::hopper
