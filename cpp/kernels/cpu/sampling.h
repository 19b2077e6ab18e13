// The CPU's sampler: from one row of logits to a token. Rows are independent, so they may be spread over threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/query.h"

namespace minisgl {

// Draws a token from `logits` [vocab], which it changes: the chain of logit processors, then greedy or temperature,
// top_k, top_p, min_p (the last three over the tempered distribution), then one draw. The random number is a function
// of (params.seed, position): counter-based (Philox 4x32-10, Salmon et al. 2011). NaN logits lose against everything;
// ties go to the lower id; at least one token always survives. Each filter works on what the one before it left: top_p
// is a share of the survivors of top_k. A row without a number (all NaN or -inf) gives first_allowed(). Throws
// CheckError where apply_processors() does. `scratch` is reused between calls.
struct SampleCandidate {
  float logit;
  float weight;  // exp((logit - max) / temperature)
  std::int32_t token;
};
struct SampleScratch {
  std::vector<SampleCandidate> candidates;
  std::vector<float> block_max, block_sum;  // [vocab / 64, rounded up]
};
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const LogitProcessors& processors,
                    std::uint64_t position, SampleScratch& scratch);

}  // namespace minisgl
