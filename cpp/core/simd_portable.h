// core/simd.h in plain C++ and the vector extension that GCC and Clang share: any processor. Included by core/simd.h
// only.
#pragma once

#include <math.h>

#include "core/half.h"

namespace minisgl::MINISGL_ISA {

using F32x4 = float __attribute__((vector_size(16)));
using I32x4 = std::int32_t __attribute__((vector_size(16)));

struct F32x8 {
  F32x4 v[2];

  static F32x8 zero() { return splat(0.0f); }
  static F32x8 splat(float x) { return {{F32x4{x, x, x, x}, F32x4{x, x, x, x}}}; }
  static F32x8 load(const float* p) {
    F32x8 a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
  void store(float* p) const { memcpy(p, this, sizeof(*this)); }

  static F32x8 load_f16(const void* p) {
    return load_halves(p, [](std::uint16_t half) { return f16_to_f32(half); });
  }
  static F32x8 load_bf16(const void* p) {
    return load_halves(p, [](std::uint16_t half) { return bf16_to_f32(half); });
  }
  template <int column>
  static F32x8 load_bf16_column(const void* p) {
    std::uint16_t halves[16];
    memcpy(halves, p, sizeof(halves));
    return each([&](int i) { return bf16_to_f32(halves[2 * i + column]); });
  }
  void store_f16(void* p) const {
    store_halves(p, [](float value) { return f32_to_f16(value); });
  }
  void store_bf16(void* p) const {
    store_halves(p, [](float value) { return f32_to_bf16(value); });
  }

  template <typename Function>
  static F32x8 each(Function function) {  // function(lane) -> float
    float lanes[8];
    for (int i = 0; i < 8; ++i) lanes[i] = function(i);
    return load(lanes);
  }
  float operator[](int lane) const { return v[lane / 4][lane % 4]; }

 private:
  template <typename Convert>
  static F32x8 load_halves(const void* p, Convert convert) {
    std::uint16_t halves[8];
    memcpy(halves, p, sizeof(halves));
    return each([&](int i) { return convert(halves[i]); });
  }
  template <typename Convert>
  void store_halves(void* p, Convert convert) const {
    std::uint16_t halves[8];
    for (int i = 0; i < 8; ++i) halves[i] = convert((*this)[i]);
    memcpy(p, halves, sizeof(halves));
  }
};

inline F32x8 operator+(F32x8 a, F32x8 b) {
  return {{a.v[0] + b.v[0], a.v[1] + b.v[1]}};
}
inline F32x8 operator-(F32x8 a, F32x8 b) {
  return {{a.v[0] - b.v[0], a.v[1] - b.v[1]}};
}
inline F32x8 operator*(F32x8 a, F32x8 b) {
  return {{a.v[0] * b.v[0], a.v[1] * b.v[1]}};
}
inline F32x8 div(F32x8 a, F32x8 b) {
  return {{a.v[0] / b.v[0], a.v[1] / b.v[1]}};
}
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) {
  return a * b + c;
}
inline F32x8 sqrt(F32x8 a) {
  return F32x8::each([&](int i) { return sqrtf(a[i]); });
}
inline F32x8 min(F32x8 a, F32x8 b) {
  return F32x8::each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline F32x8 max(F32x8 a, F32x8 b) {
  return F32x8::each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline F32x8 abs(F32x8 a) {
  return F32x8::each([&](int i) { return fabsf(a[i]); });
}
inline F32x8 round(F32x8 a) {
  return F32x8::each([&](int i) { return rintf(a[i]); });
}
inline F32x8 pow2(F32x8 n) {
  return F32x8::each([&](int i) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(static_cast<std::int32_t>(n[i]) + 127) << 23);
  });
}
inline float reduce_add(F32x8 a) {
  const F32x4 sum = a.v[0] + a.v[1];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
inline float reduce_max(F32x8 a) {
  float top = a[0];
  for (int i = 1; i < 8; ++i) top = top > a[i] ? top : a[i];
  return top;
}

struct I32x8 {
  I32x4 v[2];

  static I32x8 zero() { return splat(0); }
  static I32x8 splat(std::int32_t x) { return {{I32x4{x, x, x, x}, I32x4{x, x, x, x}}}; }
  static I32x8 load(const std::int32_t* p) {
    I32x8 a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
  void store(std::int32_t* p) const { memcpy(p, this, sizeof(*this)); }
  static I32x8 load_u8(const void* p) {
    const auto* bytes = static_cast<const std::uint8_t*>(p);
    return each([&](int i) { return std::int32_t{bytes[i]}; });
  }
  static I32x8 load_i8(const void* p) {
    const auto* bytes = static_cast<const std::int8_t*>(p);
    return each([&](int i) { return std::int32_t{bytes[i]}; });
  }

  template <typename Function>
  static I32x8 each(Function function) {  // function(lane) -> int32
    std::int32_t lanes[8];
    for (int i = 0; i < 8; ++i) lanes[i] = function(i);
    return load(lanes);
  }
  std::int32_t operator[](int lane) const { return v[lane / 4][lane % 4]; }
};

inline I32x8 operator+(I32x8 a, I32x8 b) {
  return {{a.v[0] + b.v[0], a.v[1] + b.v[1]}};
}
inline I32x8 operator-(I32x8 a, I32x8 b) {
  return {{a.v[0] - b.v[0], a.v[1] - b.v[1]}};
}
template <int bits>
inline I32x8 shift_left(I32x8 a) {
  return I32x8::each([&](int i) { return a[i] * (1 << bits); });
}
inline std::int32_t reduce_add(I32x8 a) {
  std::int32_t sum = 0;
  for (int i = 0; i < 8; ++i) sum += a[i];
  return sum;
}
inline void store_i8(const I32x8 (&a)[4], std::int8_t* p) {
  for (int i = 0; i < 32; ++i) p[i] = static_cast<std::int8_t>(a[i / 8][i % 8]);
}
inline void store_i8(I32x8 a, std::int8_t* p) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<std::int8_t>(a[i]);
}
inline void store_i16(I32x8 a, std::int16_t* p) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<std::int16_t>(a[i]);
}
inline F32x8 to_f32(I32x8 a) {
  return F32x8::each([&](int i) { return static_cast<float>(a[i]); });
}
inline I32x8 to_i32(F32x8 a) {
  return I32x8::each([&](int i) { return static_cast<std::int32_t>(rintf(a[i])); });
}

struct U8x32 {
  std::uint8_t v[32];

  static U8x32 load(const void* p) {
    U8x32 a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
  template <typename Function>
  static U8x32 each(Function function) {  // function(byte) -> byte
    U8x32 a;
    for (int i = 0; i < 32; ++i) a.v[i] = static_cast<std::uint8_t>(function(i));
    return a;
  }
};

inline U8x32 operator|(U8x32 a, U8x32 b) {
  return U8x32::each([&](int i) { return a.v[i] | b.v[i]; });
}
inline U8x32 low_nibbles(U8x32 a) {
  return U8x32::each([&](int i) { return a.v[i] & 0x0f; });
}
inline U8x32 high_nibbles(U8x32 a) {
  return U8x32::each([&](int i) { return a.v[i] >> 4; });
}
// Bits [from, from + count) of each byte, moved to [to, to + count); the others are 0.
template <int from, int count, int to>
inline U8x32 move_bits(U8x32 a) {
  return U8x32::each([&](int i) { return (a.v[i] >> from & ((1 << count) - 1)) << to; });
}
// table[i] for each byte i, all below 16.
inline U8x32 look_up(const std::uint8_t (&table)[16], U8x32 places) {
  return U8x32::each([&](int i) { return table[places.v[i]]; });
}

// ---- dot products: each of 8 lanes holds 4 weights and meets the same 4 activations. All sums are exact. ----

inline void add_products(std::int32_t (&sums)[8], const std::uint8_t* weights, const std::int8_t* x) {
  for (int lane = 0; lane < 8; ++lane)
    for (int i = 0; i < 4; ++i) sums[lane] += weights[4 * lane + i] * x[i];
}

// The signed 8-bit scales of two runs of 16 weights, for 8 lanes: 16 bytes, a lane's two scales side by side.
struct ScalePairs {
  std::int8_t v[16];

  static ScalePairs load(const void* p) {
    ScalePairs scales;
    memcpy(&scales, p, sizeof(scales));
    return scales;
  }
  // scale[0] * sums[0] + scale[1] * sums[1]
  I32x8 times(const std::int16_t* sums) const {
    return I32x8::each([&](int lane) { return v[2 * lane] * sums[0] + v[2 * lane + 1] * sums[1]; });
  }
};

inline ScalePairs low_nibbles(ScalePairs a) {
  for (std::int8_t& scale : a.v) scale = static_cast<std::int8_t>(scale & 0x0f);
  return a;
}
inline ScalePairs high_nibbles(ScalePairs a) {
  for (std::int8_t& scale : a.v) scale = static_cast<std::int8_t>(scale >> 4 & 0x0f);
  return a;
}

// Up to 8 products of weights of 4 bits; DotU4() is 0.
struct DotU4 {
  std::int32_t v[8] = {};

  void add(const U8x32& weights, const std::int8_t* x) { add_products(v, weights.v, x); }
  I32x8 sum() const { return I32x8::load(v); }
};

// Up to 4 products of weights of 5 bits in each of two runs.
struct DotU5 {
  DotU4 all;

  template <int run>
  void add(const U8x32& weights, const std::int8_t* x) {
    all.add(weights, x);
  }
  I32x8 sum() const { return all.sum(); }
};

// Up to 8 products of weights of 8 bits less 128.
struct DotU8 {
  std::int32_t v[8] = {};

  void add(const U8x32& weights, const std::int8_t* x) { add_products(v, weights.v, x); }
  I32x8 sum(std::int32_t sum_of_x) const { return I32x8::load(v) - I32x8::splat(128 * sum_of_x); }
};

// scale * products of weights of 3 bits, over two runs of 16.
struct DotScaledU3 {
  std::int32_t runs[2][8] = {};

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x) {
    for (int quad = 0; quad < 4; ++quad) add_products(runs[run], weights[quad].v, x + 4 * quad);
  }
  I32x8 sum(const ScalePairs& scales) const {
    return I32x8::each(
        [&](int lane) { return runs[0][lane] * scales.v[2 * lane] + runs[1][lane] * scales.v[2 * lane + 1]; });
  }
};

// scale * products of weights of 6 bits, over two runs of 16.
struct DotScaledU6 {
  std::int32_t v[8] = {};

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x, const ScalePairs& scales) {
    std::int32_t dot[8] = {};
    for (int quad = 0; quad < 4; ++quad) add_products(dot, weights[quad].v, x + 4 * quad);
    for (int lane = 0; lane < 8; ++lane) v[lane] += dot[lane] * scales.v[2 * lane + run];
  }
  I32x8 sum() const { return I32x8::load(v); }
};

struct I8x32 {
  std::int8_t v[32];

  static I8x32 load(const void* p) {
    I8x32 a;
    memcpy(&a, p, sizeof(a));
    return a;
  }
};

// Products of signed bytes with integers of 16 bits; 64 of them fit.
struct DotI16 {
  std::int32_t v[8] = {};

  void add(const I8x32& bytes, const std::int16_t* x) {
    for (int lane = 0; lane < 8; ++lane)
      for (int i = 0; i < 4; ++i) v[lane] += bytes.v[4 * lane + i] * x[i];
  }
  I32x8 sum() const { return I32x8::load(v); }
};

}  // namespace minisgl::MINISGL_ISA
