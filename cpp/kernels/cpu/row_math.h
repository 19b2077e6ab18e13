// Passes over one row of logits, cut into blocks of 64, that sampling is made of. Chosen for the processor at run time.
#pragma once

#include <cstdint>

namespace minisgl {

constexpr std::int64_t kLogitBlock = 64;

constexpr std::int64_t num_logit_blocks(std::int64_t size) {
  return (size + kLogitBlock - 1) / kLogitBlock;
}

// block_max[b] = largest of x's block b; NaN counts as -inf. x [size], block_max [num_logit_blocks(size)].
void logit_block_max(const float* x, std::int64_t size, float* block_max);

// weights[i] = exp((x[i] - max) * scale), 0 for NaN; `max` is finite and at least every x[i].
// weights [size], or null when only block_sum [num_logit_blocks(size)], each block's sum of weights, is wanted.
void logit_weights(const float* x, std::int64_t size, float max, float scale, float* weights, float* block_sum);

}  // namespace minisgl
