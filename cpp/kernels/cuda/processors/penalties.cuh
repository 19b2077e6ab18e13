// Penalties: tokens that were seen become less likely.
#pragma once

#include "kernels/cuda/logit_slice.cuh"
#include "kernels/cuda/step_data.h"

namespace minisgl::cuda {

constexpr std::uint32_t kPromptBit = 0x80000000u;  // the bit of a count that says: the token stands in the prompt

// seen [vocab]: a count per token, kPromptBit beside it.
__device__ __forceinline__ void apply_penalties(const QueryEntry& query, const Slice& slice, const std::uint32_t* seen,
                                                float* logits) {
  for (std::int32_t i = threadIdx.x; i < slice.size; i += kSampleThreads) {
    const std::uint32_t entry = seen[slice.first + i];
    if (entry == 0) continue;
    const std::uint32_t count = entry & ~kPromptBit;
    float x = logits[i];
    if (query.repetition_penalty != 1.0f) x = x > 0 ? x / query.repetition_penalty : x * query.repetition_penalty;
    if (count != 0) x -= query.frequency_penalty * static_cast<float>(count) + query.presence_penalty;
    logits[i] = x;
  }
}

}  // namespace minisgl::cuda
