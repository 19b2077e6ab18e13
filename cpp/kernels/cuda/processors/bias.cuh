// Bias: what a request adds to the logits of some tokens.
#pragma once

#include "kernels/cuda/logit_slice.cuh"
#include "kernels/cuda/step_data.h"

namespace minisgl::cuda {

// One thread adds them all, as a token may stand in the list twice.
__device__ __forceinline__ void apply_bias(const StepData& step, const QueryEntry& query, const Slice& slice,
                                           float* logits) {
  if (threadIdx.x != 0) return;
  for (std::int32_t i = 0; i < query.num_bias; ++i) {
    const BiasEntry entry = step.biases[query.first_bias + i];
    if (const std::int32_t at = slice.index_of(entry.token); at >= 0) logits[at] += entry.bias;
  }
}

}  // namespace minisgl::cuda
