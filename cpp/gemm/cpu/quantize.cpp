// Activations to int8 in blocks of 32: scale = max |x| / 127, q = round(x / scale).
// Reads 128 bytes and writes 48 a block.
#include "gemm/cpu/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

// Below this a block counts as zeros: 127 / max would not be finite.
constexpr float smallest_max = 1e-35f;

// Writes 32 integers in [-127, 127] and returns their scale. A value that is not a number becomes 127.
inline float quantize_block(const float* x, std::int32_t (&q)[32]) {
  F32x8 values[4];
  F32x8 largest = F32x8::zero();
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    values[i] = F32x8::load(x + 8 * i);
    largest = max(abs(values[i]), largest);
  }
  const float top = reduce_max(largest);
  const float inverse = top >= smallest_max ? 127.0f / top : 0.0f;
  const F32x8 limit = F32x8::splat(127.0f);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const F32x8 scaled = values[i] * F32x8::splat(inverse);
    to_i32(max(min(scaled, limit), F32x8::zero() - limit)).store(q + 8 * i);
  }
  return top >= smallest_max ? top / 127.0f : 0.0f;
}

}  // namespace

void quantize_activations(const float* x, std::int64_t cols, ActivationBlock* blocks) {
  for (std::int64_t block = 0; block < cols / 32; ++block) {
    ActivationBlock& out = blocks[block];
    std::int32_t q[32];
    out.scale = quantize_block(x + 32 * block, q);
    std::int32_t sums[2] = {};
    for (int i = 0; i < 32; ++i) sums[i / 16] += q[i];
    for (int i = 0; i < 32; ++i) out.q[i] = static_cast<std::int8_t>(q[i]);
    out.sums16[0] = static_cast<std::int16_t>(sums[0]);
    out.sums16[1] = static_cast<std::int16_t>(sums[1]);
    out.sum = sums[0] + sums[1];
    out.scaled_sum = out.scale * static_cast<float>(out.sum);
  }
}

}  // namespace minisgl::MINISGL_ISA
