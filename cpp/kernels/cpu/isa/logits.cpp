// The passes over a row of logits of row_math.h: one read of the row each.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vector_math.h"
#include "kernels/cpu/row_math.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr int kVectors = kLogitBlock / 8;

// The last, incomplete block, filled up with -inf.
void copy_padded(const float* x, std::int64_t size, float* block) {
  memcpy(block, x, size * sizeof(float));
  for (std::int64_t i = size; i < kLogitBlock; ++i) block[i] = -__builtin_inff();
}

float block_max_of(const float* x) {
  // max() returns its second operand when one is NaN, which is never a NaN here.
  F32x8 top[2] = {F32x8::splat(-__builtin_inff()), F32x8::splat(-__builtin_inff())};
  for (int i = 0; i < kVectors; ++i) top[i % 2] = max(F32x8::load(x + 8 * i), top[i % 2]);
  return reduce_max(max(top[0], top[1]));
}

float block_weights_of(const float* x, F32x8 row_max, F32x8 scale, float* weights) {
  F32x8 sums[2] = {F32x8::zero(), F32x8::zero()};
  for (int i = 0; i < kVectors; ++i) {
    const F32x8 weight = exp_or_zero((F32x8::load(x + 8 * i) - row_max) * scale);
    if (weights != nullptr) weight.store(weights + 8 * i);
    sums[i % 2] = sums[i % 2] + weight;
  }
  return reduce_add(sums[0] + sums[1]);
}

}  // namespace

void logit_block_max(const float* x, std::int64_t size, float* block_max) {
  const std::int64_t full = size / kLogitBlock;
  for (std::int64_t block = 0; block < full; ++block) block_max[block] = block_max_of(x + block * kLogitBlock);
  if (full * kLogitBlock == size) return;
  float last[kLogitBlock];
  copy_padded(x + full * kLogitBlock, size - full * kLogitBlock, last);
  block_max[full] = block_max_of(last);
}

void logit_weights(const float* x, std::int64_t size, float max, float scale, float* weights, float* block_sum) {
  const F32x8 row_max = F32x8::splat(max), scales = F32x8::splat(scale);
  const std::int64_t full = size / kLogitBlock;
  for (std::int64_t block = 0; block < full; ++block) {
    const std::int64_t first = block * kLogitBlock;
    block_sum[block] = block_weights_of(x + first, row_max, scales, weights != nullptr ? weights + first : nullptr);
  }
  const std::int64_t rest = size - full * kLogitBlock;
  if (rest == 0) return;
  float last[kLogitBlock], last_weights[kLogitBlock];
  copy_padded(x + full * kLogitBlock, rest, last);
  block_sum[full] = block_weights_of(last, row_max, scales, last_weights);
  if (weights != nullptr) memcpy(weights + full * kLogitBlock, last_weights, rest * sizeof(float));
}

}  // namespace minisgl::MINISGL_ISA
