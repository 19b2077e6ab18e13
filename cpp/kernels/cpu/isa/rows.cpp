// Operations on one row or one head: norms, SiLU, rotation, conversion. Bound by reading and writing the row.
#include "core/half.h"
#include "kernels/activation.h"
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vector_math.h"

namespace minisgl::MINISGL_ISA {
namespace {

// The sum of four chains of eight lanes, then the rest one by one: one order for every row.
// add(i, total) adds what elements i .. i+7 give to the total, one(i) is what element i gives.
template <typename Add, typename One>
float sum_over(std::int64_t dim, Add add, One one) {
  F32x8 sums[4] = {F32x8::zero(), F32x8::zero(), F32x8::zero(), F32x8::zero()};
  std::int64_t i = 0;
  for (; i + 32 <= dim; i += 32)
    for (int chain = 0; chain < 4; ++chain) sums[chain] = add(i + 8 * chain, sums[chain]);
  for (; i + 8 <= dim; i += 8) sums[0] = add(i, sums[0]);
  float sum = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < dim; ++i) sum += one(i);
  return sum;
}

// y = f(a, b), eight by eight.
template <typename Function>
void for_eights(const float* a, const float* b, std::int64_t dim, float* y, Function f) {
  std::int64_t i = 0;
  for (; i + 8 <= dim; i += 8) f(F32x8::load(a + i), F32x8::load(b + i)).store(y + i);
  if (i == dim) return;
  float last_a[8] = {}, last_b[8] = {}, last_y[8];
  memcpy(last_a, a + i, (dim - i) * sizeof(float));
  memcpy(last_b, b + i, (dim - i) * sizeof(float));
  f(F32x8::load(last_a), F32x8::load(last_b)).store(last_y);
  memcpy(y + i, last_y, (dim - i) * sizeof(float));
}

void normalize(const float* x, const float* weight, float sum, float eps, std::int64_t dim, float* y) {
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(dim) + eps);
  const F32x8 inverses = F32x8::splat(inverse);
  std::int64_t i = 0;
  for (; i + 8 <= dim; i += 8) (F32x8::load(x + i) * inverses * F32x8::load(weight + i)).store(y + i);
  for (; i < dim; ++i) y[i] = x[i] * inverse * weight[i];
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, std::int64_t dim, float* y) {
  normalize(x, weight, square_sum(x, dim), eps, dim, y);
}

void add_rms_norm(float* residual, const float* delta, const float* weight, float eps, std::int64_t dim, float* y) {
  const float sum = sum_over(
      dim,
      [&](std::int64_t i, F32x8 total) {
        const F32x8 value = F32x8::load(residual + i) + F32x8::load(delta + i);
        value.store(residual + i);
        return fma(value, value, total);
      },
      [&](std::int64_t i) {
        residual[i] += delta[i];
        return residual[i] * residual[i];
      });
  normalize(residual, weight, sum, eps, dim, y);
}

void layer_norm(const float* x, const float* weight, float eps, std::int64_t dim, float* y) {
  const float sum = sum_over(
      dim, [&](std::int64_t i, F32x8 total) { return total + F32x8::load(x + i); },
      [&](std::int64_t i) { return x[i]; });
  const float mean = sum / static_cast<float>(dim);
  const F32x8 means = F32x8::splat(mean);
  const float squares = sum_over(
      dim,
      [&](std::int64_t i, F32x8 total) {
        const F32x8 value = F32x8::load(x + i) - means;
        value.store(y + i);
        return fma(value, value, total);
      },
      [&](std::int64_t i) {
        y[i] = x[i] - mean;
        return y[i] * y[i];
      });
  normalize(y, weight, squares, eps, dim, y);
}

float square_sum(const float* x, std::int64_t dim) {
  return sum_over(
      dim,
      [&](std::int64_t i, F32x8 total) {
        const F32x8 value = F32x8::load(x + i);
        return fma(value, value, total);
      },
      [&](std::int64_t i) { return x[i] * x[i]; });
}

void silu_mul(const float* gate, const float* up, std::int64_t dim, float* y) {
  const F32x8 one = F32x8::splat(1.0f);
  for_eights(gate, up, dim, y, [&](F32x8 g, F32x8 u) { return div(g, one + exp(F32x8::zero() - g)) * u; });
}

// GELU by its approximation: gate * (1 + tanh(t)) / 2 is gate / (1 + exp(-2 t)).
void gelu_mul(const float* gate, const float* up, std::int64_t dim, float* y) {
  const F32x8 one = F32x8::splat(1.0f), minus_two_roots = F32x8::splat(-1.5957691216f), cubic = F32x8::splat(0.044715f);
  for_eights(gate, up, dim, y,
             [&](F32x8 g, F32x8 u) { return div(g, one + exp(minus_two_roots * g * fma(cubic, g * g, one))) * u; });
}

// Activation::clamped_silu
void clamped_silu_mul(const float* gate, const float* up, std::int64_t dim, float* y) {
  const F32x8 one = F32x8::splat(1.0f), slope = F32x8::splat(-kClampedSiluSlope);
  const F32x8 limit = F32x8::splat(kClampedSiluLimit), least = F32x8::splat(-kClampedSiluLimit);
  for_eights(gate, up, dim, y, [&](F32x8 g, F32x8 u) {
    g = min(g, limit);
    u = max(min(u, limit), least);
    return div(g, one + exp(slope * g)) * (u + one);
  });
}

void scale_and_cap(float* x, std::int64_t dim, float scale, float cap) {
  const F32x8 inner = F32x8::splat(cap == 0.0f ? scale : scale / cap), outer = F32x8::splat(cap);
  for_eights(x, x, dim, x, [&](F32x8 value, F32x8) {
    value = value * inner;
    return cap == 0.0f ? value : tanh(value) * outer;
  });
}

void rope(float* head, const float* cos_sin, int rotary_dim) {
  const int half = rotary_dim / 2;
  float* low = head;
  float* high = head + half;
  const float* cosine = cos_sin;
  const float* sine = cos_sin + half;
  int i = 0;
  for (; i + 8 <= half; i += 8) {
    const F32x8 a = F32x8::load(low + i), b = F32x8::load(high + i);
    const F32x8 c = F32x8::load(cosine + i), s = F32x8::load(sine + i);
    (a * c - b * s).store(low + i);
    (b * c + a * s).store(high + i);
  }
  for (; i < half; ++i) {
    const float a = low[i], b = high[i];
    low[i] = a * cosine[i] - b * sine[i];
    high[i] = b * cosine[i] + a * sine[i];
  }
}

void convert(const float* x, std::int64_t size, DType dtype, std::byte* out) {
  if (dtype == DType::f32) {
    memcpy(out, x, size * sizeof(float));
    return;
  }
  const bool f16 = dtype == DType::f16;
  std::int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const F32x8 values = F32x8::load(x + i);
    if (f16) {
      values.store_f16(out + 2 * i);
    } else {
      values.store_bf16(out + 2 * i);
    }
  }
  for (; i < size; ++i) {
    const std::uint16_t half = f16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    memcpy(out + 2 * i, &half, sizeof(half));
  }
}

// The scale is NaN where an element isn't finite: x * 0 is NaN then, in whichever lane.
float quantize_head(const float* x, std::int64_t size, std::byte* out) {
  constexpr float most = kv_byte_max(DType::i8);
  F32x8 largest = F32x8::zero(), poison = F32x8::zero();
  for (std::int64_t i = 0; i < size; i += 8) {
    const F32x8 value = F32x8::load(x + i);
    largest = max(abs(value), largest);
    poison = fma(value, F32x8::zero(), poison);
  }
  const float quotient = reduce_max(largest) / most;
  const float scale = quotient > 0 ? quotient : 1;
  const F32x8 scales = F32x8::splat(scale), limit = F32x8::splat(most);
  for (std::int64_t i = 0; i < size; i += 8) {
    const F32x8 scaled = div(F32x8::load(x + i), scales);
    store_i8(to_i32(max(min(scaled, limit), F32x8::zero() - limit)), reinterpret_cast<std::int8_t*>(out) + i);
  }
  return scale + reduce_add(poison);
}

}  // namespace minisgl::MINISGL_ISA
