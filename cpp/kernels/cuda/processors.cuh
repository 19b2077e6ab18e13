// The chain of logit processors (kernels/processors.h) on a slice of a row, in one block of threads.
#pragma once

#include "kernels/cuda/processors/bans.cuh"
#include "kernels/cuda/processors/bias.cuh"
#include "kernels/cuda/processors/mask.cuh"
#include "kernels/cuda/processors/penalties.cuh"

namespace minisgl::cuda {

// Whether any part of the chain is in use. `seen`: the counts of the query, or null.
__device__ __forceinline__ bool has_processors(const QueryEntry& query, const std::uint32_t* seen) {
  return seen != nullptr || query.num_bias > 0 || query.num_banned > 0 || query.num_mask_words > 0;
}

// Each part in its order, over `logits`, which are a copy of the slice's.
__device__ __forceinline__ void apply_processors(const StepData& step, const QueryEntry& query, const Slice& slice,
                                                 const std::uint32_t* seen, float* logits) {
  apply_bias(step, query, slice, logits);
  __syncthreads();
  if (seen != nullptr) {
    apply_penalties(query, slice, seen, logits);
    __syncthreads();
  }
  apply_bans(step, query, slice, logits);
  apply_mask(step, query, slice, logits);  // nothing but -inf, as bans: in whichever order threads come
  __syncthreads();
}

}  // namespace minisgl::cuda
