// Activations to int8 in blocks of 32: scale = max |x| / 127, q = round(x / scale).
// Reads 128 bytes and writes 48 per block.
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

// Below this a block counts as zeros: 127 / max would not be finite.
constexpr float smallest_max = 1e-35f;

// A value that is not a number becomes 127.
inline void quantize_block(const float* x, ActivationBlock& out) {
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
  I32x8 q[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const F32x8 scaled = values[i] * F32x8::splat(inverse);
    q[i] = to_i32(max(min(scaled, limit), F32x8::zero() - limit));
  }
  store_i8(q, out.q);
  const std::int32_t sums[2] = {reduce_add(q[0] + q[1]), reduce_add(q[2] + q[3])};
  out.scale = top >= smallest_max ? top / 127.0f : 0.0f;
  out.sums16[0] = static_cast<std::int16_t>(sums[0]);
  out.sums16[1] = static_cast<std::int16_t>(sums[1]);
  out.sum = sums[0] + sums[1];
  out.scaled_sum = out.scale * static_cast<float>(out.sum);
}

}  // namespace

void quantize_activations(const float* x, std::int64_t cols, ActivationBlock* blocks) {
  for (std::int64_t block = 0; block < cols / 32; ++block) quantize_block(x + 32 * block, blocks[block]);
}

}  // namespace minisgl::MINISGL_ISA
