// Rows of f16 and bf16 to f32 and back. Bound by memory.
#include "core/half.h"
#include "gemm/cpu/isa/kernels.h"

namespace minisgl::MINISGL_ISA {
namespace {

inline std::uint16_t load_half(const std::byte* p) {
  std::uint16_t half;
  memcpy(&half, p, sizeof(half));
  return half;
}

}  // namespace

void widen_values(const std::byte* x, DType dtype, std::int64_t count, float* out) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    (dtype == DType::f16 ? F32x8::load_f16(x + 2 * i) : F32x8::load_bf16(x + 2 * i)).store(out + i);
  for (; i < count; ++i)
    out[i] = dtype == DType::f16 ? f16_to_f32(load_half(x + 2 * i)) : bf16_to_f32(load_half(x + 2 * i));
}

void round_values(const float* x, DType dtype, std::int64_t count, std::byte* out) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const F32x8 values = F32x8::load(x + i);
    dtype == DType::f16 ? values.store_f16(out + 2 * i) : values.store_bf16(out + 2 * i);
  }
  for (; i < count; ++i) {
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    memcpy(out + 2 * i, &half, sizeof(half));
  }
}

}  // namespace minisgl::MINISGL_ISA
