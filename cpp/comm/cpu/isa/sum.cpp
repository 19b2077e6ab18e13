// Sums over ranks: reads every input once and writes the output once; bound by memory.
#include "core/dtype.h"
#include "core/half.h"
#include "core/simd.h"

namespace minisgl::MINISGL_ISA {
namespace {

struct Float {
  using Value = float;
  static F32x8 load(const Value* p) { return F32x8::load(p); }
  static void store(F32x8 x, Value* p) { x.store(p); }
  static float to_f32(Value x) { return x; }
  static Value from_f32(float x) { return x; }
};

struct Half {
  using Value = std::uint16_t;
  static F32x8 load(const Value* p) { return F32x8::load_f16(p); }
  static void store(F32x8 x, Value* p) { x.store_f16(p); }
  static float to_f32(Value x) { return f16_to_f32(x); }
  static Value from_f32(float x) { return f32_to_f16(x); }
};

struct BFloat {
  using Value = std::uint16_t;
  static F32x8 load(const Value* p) { return F32x8::load_bf16(p); }
  static void store(F32x8 x, Value* p) { x.store_bf16(p); }
  static float to_f32(Value x) { return bf16_to_f32(x); }
  static Value from_f32(float x) { return f32_to_bf16(x); }
};

template <typename Type>
void sum_of_type(const void* const* inputs, int num_inputs, std::int64_t count, void* out) {
  using Value = typename Type::Value;
  const auto* const* rows = reinterpret_cast<const Value* const*>(inputs);
  auto* sums = static_cast<Value*>(out);
  std::int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    F32x8 sum[4];
    for (int k = 0; k < 4; ++k) sum[k] = Type::load(rows[0] + i + 8 * k);
    for (int input = 1; input < num_inputs; ++input)
      for (int k = 0; k < 4; ++k) sum[k] = sum[k] + Type::load(rows[input] + i + 8 * k);
    for (int k = 0; k < 4; ++k) Type::store(sum[k], sums + i + 8 * k);
  }
  for (; i < count; ++i) {
    float sum = Type::to_f32(rows[0][i]);
    for (int input = 1; input < num_inputs; ++input) sum += Type::to_f32(rows[input][i]);
    sums[i] = Type::from_f32(sum);
  }
}

}  // namespace

extern void sum_inputs(const void* const* inputs, int num_inputs, std::int64_t count, DType dtype, void* out);
void sum_inputs(const void* const* inputs, int num_inputs, std::int64_t count, DType dtype, void* out) {
  if (dtype == DType::f32) return sum_of_type<Float>(inputs, num_inputs, count, out);
  if (dtype == DType::f16) return sum_of_type<Half>(inputs, num_inputs, count, out);
  return sum_of_type<BFloat>(inputs, num_inputs, count, out);
}

}  // namespace minisgl::MINISGL_ISA
