// exp on eight lanes, the same for every kernel of this room.
#pragma once

#include "core/simd.h"

namespace minisgl::MINISGL_ISA {

constexpr float kExpLowest = -87.0f;  // exp of anything below, and of NaN, is exp of this: 1.6e-38
constexpr float kExpHighest = 88.0f;

// Within 2 units in the last place between the two bounds.
inline F32x8 exp(F32x8 x) {
  x = min(max(x, F32x8::splat(kExpLowest)), F32x8::splat(kExpHighest));
  // x = n ln 2 + r with |r| <= 0.35; ln 2 in two parts, the product with the first is exact.
  const F32x8 n = round(x * F32x8::splat(1.44269504f));
  F32x8 r = fma(n, F32x8::splat(-0.693359375f), x);
  r = fma(n, F32x8::splat(2.12194440e-4f), r);
  // (exp(r) - 1 - r) / r^2, fitted for the least relative error of exp: 6e-11 before rounding.
  F32x8 y = F32x8::splat(0.00019790062f);
  y = fma(y, r, F32x8::splat(0.0013944943f));
  y = fma(y, r, F32x8::splat(0.008333499f));
  y = fma(y, r, F32x8::splat(0.04166629f));
  y = fma(y, r, F32x8::splat(0.16666666f));
  y = fma(y, r, F32x8::splat(0.5f));
  y = fma(y, r * r, r) + F32x8::splat(1.0f);
  return y * pow2(n);
}

// The same, but 0 for NaN and at or below the lower bound: what has no probability is never drawn.
inline F32x8 exp_or_zero(F32x8 x) {
  const F32x8 above = (x - F32x8::splat(kExpLowest)) * F32x8::splat(1e30f);
  return exp(x) * min(max(above, F32x8::zero()), F32x8::splat(1.0f));
}

// Within 1e-7: the result of a small x keeps its absolute, not its relative precision.
inline F32x8 tanh(F32x8 x) {
  const F32x8 one = F32x8::splat(1.0f);
  return one - div(F32x8::splat(2.0f), exp(x + x) + one);
}

inline float exp(float x) {
  float lanes[8];
  exp(F32x8::splat(x)).store(lanes);
  return lanes[0];
}

}  // namespace minisgl::MINISGL_ISA
