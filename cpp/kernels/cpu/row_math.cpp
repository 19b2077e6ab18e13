// Passes over a row of logits with the processor's kernels.
#include "kernels/cpu/row_math.h"

#include "kernels/cpu/kernel_table.h"

namespace minisgl {

void logit_block_max(const float* x, std::int64_t size, float* block_max) {
  cpu_kernels().logit_block_max(x, size, block_max);
}

void logit_weights(const float* x, std::int64_t size, float max, float scale, float* weights, float* block_sum) {
  cpu_kernels().logit_weights(x, size, max, scale, weights, block_sum);
}

}  // namespace minisgl
