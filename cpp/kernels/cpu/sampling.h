// The CPU's sampler: from one row of logits to a token. Rows are independent, so they may be spread over threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/query.h"

namespace minisgl {

// Which tokens a request has seen, for the penalties; kept by the engine, one a request that needs it.
struct TokenCounts {
  std::vector<std::uint8_t> in_prompt;   // [vocab] 0 or 1; empty when repetition_penalty is 1
  std::vector<std::uint32_t> in_output;  // [vocab]; empty when no penalty is set
};

// Samples from `logits` [vocab], which it changes. Order, as vLLM has it: logit_bias, penalties, `banned` set to -inf,
// then greedy or temperature, top_k, top_p, min_p (the last three over the tempered distribution), then one draw.
// The random number is a function of (params.seed, position): counter-based (Philox 4x32-10, Salmon et al. 2011).
// NaN logits lose against everything; ties go to the lower id; at least one token always survives.
// Each filter works on what the one before it left: top_p is a share of the survivors of top_k. A row without a number
// (all NaN or -inf) gives the lowest id that is not banned. Throws CheckError for a token outside the vocabulary.
// `scratch` is reused between calls.
struct SampleCandidate {
  float logit;
  float weight;  // exp((logit - max) / temperature)
  std::int32_t token;
};
struct SampleScratch {
  std::vector<SampleCandidate> candidates;
  std::vector<float> block_max, block_sum;  // [vocab / 64, rounded up]
};
std::int32_t sample(std::span<float> logits, const SamplingParams& params, const TokenCounts& counts,
                    std::span<const std::int32_t> banned, std::uint64_t position, SampleScratch& scratch);

}  // namespace minisgl
