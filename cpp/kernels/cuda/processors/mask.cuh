// Mask: the only tokens that may be drawn, one bit each.
#pragma once

#include "kernels/cuda/logit_slice.cuh"
#include "kernels/cuda/step_data.h"

namespace minisgl::cuda {

// A query without a mask has no words of one, and allows all.
__device__ __forceinline__ bool mask_allows(const StepData& step, const QueryEntry& query, std::int32_t token) {
  if (query.num_mask_words == 0) return true;
  const std::int32_t word = token / 32;
  return word < query.num_mask_words && (step.masks[query.first_mask + word] >> (token % 32) & 1u) != 0;
}

__device__ __forceinline__ void apply_mask(const StepData& step, const QueryEntry& query, const Slice& slice,
                                           float* logits) {
  if (query.num_mask_words == 0) return;
  for (std::int32_t i = threadIdx.x; i < slice.size; i += kSampleThreads)
    if (!mask_allows(step, query, slice.first + i)) logits[i] = -INFINITY;
}

}  // namespace minisgl::cuda
