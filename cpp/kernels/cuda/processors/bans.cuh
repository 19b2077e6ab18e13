// Bans: tokens that must not be drawn, by name.
#pragma once

#include "kernels/cuda/logit_slice.cuh"
#include "kernels/cuda/step_data.h"

namespace minisgl::cuda {

__device__ __forceinline__ void apply_bans(const StepData& step, const QueryEntry& query, const Slice& slice,
                                           float* logits) {
  for (std::int32_t i = threadIdx.x; i < query.num_banned; i += kSampleThreads)
    if (const std::int32_t at = slice.index_of(step.banned[query.first_banned + i]); at >= 0) logits[at] = -INFINITY;
}

__device__ __forceinline__ bool is_banned(const StepData& step, const QueryEntry& query, std::int32_t token) {
  for (std::int32_t i = 0; i < query.num_banned; ++i)
    if (step.banned[query.first_banned + i] == token) return true;
  return false;
}

}  // namespace minisgl::cuda
