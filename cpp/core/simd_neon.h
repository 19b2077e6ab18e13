// core/simd.h for aarch64 with the dot products of NEON (SDOT). Included by core/simd.h only.
#pragma once

#include <arm_neon.h>

#include "core/half.h"

namespace minisgl::MINISGL_ISA {

struct F32x8 {
  float32x4_t v[2];

  static F32x8 zero() { return splat(0.0f); }
  static F32x8 splat(float value) { return {{vdupq_n_f32(value), vdupq_n_f32(value)}}; }
  static F32x8 load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4)}}; }
  void store(float* p) const {
    vst1q_f32(p, v[0]);
    vst1q_f32(p + 4, v[1]);
  }

  static F32x8 load_f16(const void* p) {
    const float16x8_t halves = vreinterpretq_f16_u16(load_u16(p));
    return {{vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)}};
  }
  void store_f16(void* p) const { store_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v[0]), v[1]))); }
  static F32x8 load_bf16(const void* p) {
    const uint16x8_t halves = load_u16(p);
    return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
             vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))}};
  }
  template <int column>
  static F32x8 load_bf16_column(const void* p) {
    F32x8 a;
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(static_cast<const std::uint8_t*>(p) + 16 * i));
      a.v[i] = vreinterpretq_f32_u32(column == 0 ? vshlq_n_u32(pairs, 16) : vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    }
    return a;
  }
  void store_bf16(void* p) const { store_u16(p, vcombine_u16(to_bf16(v[0]), to_bf16(v[1]))); }

 private:
  static uint16x8_t load_u16(const void* p) {
    return vreinterpretq_u16_u8(vld1q_u8(static_cast<const std::uint8_t*>(p)));
  }
  static void store_u16(void* p, uint16x8_t halves) {
    vst1q_u8(static_cast<std::uint8_t*>(p), vreinterpretq_u8_u16(halves));
  }
  static uint16x4_t to_bf16(float32x4_t value) {  // ties to even; a NaN stays a NaN
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(value, value), rounded, quiet), 16);
  }
};

inline F32x8 operator+(F32x8 a, F32x8 b) {
  return {{vaddq_f32(a.v[0], b.v[0]), vaddq_f32(a.v[1], b.v[1])}};
}
inline F32x8 operator-(F32x8 a, F32x8 b) {
  return {{vsubq_f32(a.v[0], b.v[0]), vsubq_f32(a.v[1], b.v[1])}};
}
inline F32x8 operator*(F32x8 a, F32x8 b) {
  return {{vmulq_f32(a.v[0], b.v[0]), vmulq_f32(a.v[1], b.v[1])}};
}
inline F32x8 div(F32x8 a, F32x8 b) {
  return {{vdivq_f32(a.v[0], b.v[0]), vdivq_f32(a.v[1], b.v[1])}};
}
inline F32x8 sqrt(F32x8 a) {
  return {{vsqrtq_f32(a.v[0]), vsqrtq_f32(a.v[1])}};
}
// A comparison and a choice: FMIN and FMAX would return a NaN of the first operand, too.
inline F32x8 min(F32x8 a, F32x8 b) {
  return {{vbslq_f32(vcltq_f32(a.v[0], b.v[0]), a.v[0], b.v[0]), vbslq_f32(vcltq_f32(a.v[1], b.v[1]), a.v[1], b.v[1])}};
}
inline F32x8 max(F32x8 a, F32x8 b) {
  return {{vbslq_f32(vcgtq_f32(a.v[0], b.v[0]), a.v[0], b.v[0]), vbslq_f32(vcgtq_f32(a.v[1], b.v[1]), a.v[1], b.v[1])}};
}
inline F32x8 abs(F32x8 a) {
  return {{vabsq_f32(a.v[0]), vabsq_f32(a.v[1])}};
}
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) {
  return {{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1])}};
}
inline F32x8 round(F32x8 a) {
  return {{vrndnq_f32(a.v[0]), vrndnq_f32(a.v[1])}};
}
inline F32x8 pow2(F32x8 n) {
  F32x8 power;
  for (int i = 0; i < 2; ++i)
    power.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23));
  return power;
}
inline float reduce_add(F32x8 a) {
  const float32x4_t sum = vaddq_f32(a.v[0], a.v[1]);
  const float32x2_t pair = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
inline float reduce_max(F32x8 a) {
  float lanes[8];
  a.store(lanes);
  float top = lanes[0];
  for (int i = 1; i < 8; ++i) top = top > lanes[i] ? top : lanes[i];
  return top;
}

struct I32x8 {
  int32x4_t v[2];

  static I32x8 zero() { return splat(0); }
  static I32x8 splat(std::int32_t value) { return {{vdupq_n_s32(value), vdupq_n_s32(value)}}; }
  static I32x8 load(const std::int32_t* p) { return {{vld1q_s32(p), vld1q_s32(p + 4)}}; }
  void store(std::int32_t* p) const {
    vst1q_s32(p, v[0]);
    vst1q_s32(p + 4, v[1]);
  }
  static I32x8 load_u8(const void* p) {
    const int16x8_t halves = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(static_cast<const std::uint8_t*>(p))));
    return {{vmovl_s16(vget_low_s16(halves)), vmovl_high_s16(halves)}};
  }
  static I32x8 load_i8(const void* p) {
    const int16x8_t halves = vmovl_s8(vld1_s8(static_cast<const std::int8_t*>(p)));
    return {{vmovl_s16(vget_low_s16(halves)), vmovl_high_s16(halves)}};
  }
};

inline I32x8 operator+(I32x8 a, I32x8 b) {
  return {{vaddq_s32(a.v[0], b.v[0]), vaddq_s32(a.v[1], b.v[1])}};
}
inline I32x8 operator-(I32x8 a, I32x8 b) {
  return {{vsubq_s32(a.v[0], b.v[0]), vsubq_s32(a.v[1], b.v[1])}};
}
template <int bits>
inline I32x8 shift_left(I32x8 a) {
  return {{vshlq_n_s32(a.v[0], bits), vshlq_n_s32(a.v[1], bits)}};
}
inline F32x8 to_f32(I32x8 a) {
  return {{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1])}};
}
inline std::int32_t reduce_add(I32x8 a) {
  return vaddvq_s32(vaddq_s32(a.v[0], a.v[1]));
}
inline int16x8_t to_i16(I32x8 a) {
  return vmovn_high_s32(vmovn_s32(a.v[0]), a.v[1]);
}
inline void store_i8(const I32x8 (&a)[4], std::int8_t* p) {
  for (int i = 0; i < 4; ++i) vst1_s8(p + 8 * i, vmovn_s16(to_i16(a[i])));
}
inline void store_i8(I32x8 a, std::int8_t* p) {
  vst1_s8(p, vmovn_s16(to_i16(a)));
}
inline void store_i16(I32x8 a, std::int16_t* p) {
  vst1q_s16(p, to_i16(a));
}
inline I32x8 to_i32(F32x8 a) {
  return {{vcvtnq_s32_f32(a.v[0]), vcvtnq_s32_f32(a.v[1])}};
}

struct U8x32 {
  uint8x16_t v[2];

  static U8x32 load(const void* p) {
    const auto* bytes = static_cast<const std::uint8_t*>(p);
    return {{vld1q_u8(bytes), vld1q_u8(bytes + 16)}};
  }
};

inline U8x32 operator|(U8x32 a, U8x32 b) {
  return {{vorrq_u8(a.v[0], b.v[0]), vorrq_u8(a.v[1], b.v[1])}};
}
inline U8x32 low_nibbles(U8x32 a) {
  return {{vandq_u8(a.v[0], vdupq_n_u8(0x0f)), vandq_u8(a.v[1], vdupq_n_u8(0x0f))}};
}
inline U8x32 high_nibbles(U8x32 a) {
  return {{vshrq_n_u8(a.v[0], 4), vshrq_n_u8(a.v[1], 4)}};
}
// Bits [from, from + count) of each byte, moved to [to, to + count); the others are 0.
template <int from, int count, int to>
inline U8x32 move_bits(U8x32 a) {
  const uint8x16_t mask = vdupq_n_u8(((1 << count) - 1) << to);
  const int8x16_t places = vdupq_n_s8(to - from);
  return {{vandq_u8(vshlq_u8(a.v[0], places), mask), vandq_u8(vshlq_u8(a.v[1], places), mask)}};
}
// table[i] for each byte i, all below 16.
inline U8x32 look_up(const std::uint8_t (&table)[16], U8x32 places) {
  const uint8x16_t values = vld1q_u8(table);
  return {{vqtbl1q_u8(values, places.v[0]), vqtbl1q_u8(values, places.v[1])}};
}

// ---- dot products: each of 8 lanes holds 4 weights and meets the same 4 activations. All sums are exact. ----

inline int8x16_t splat_4_bytes(const std::int8_t* p) {
  std::int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

// The signed 8-bit scales of two runs of 16 weights, for 8 lanes: 16 bytes, a lane's two scales side by side.
struct ScalePairs {
  int8x16_t v;

  static ScalePairs load(const void* p) { return {vld1q_s8(static_cast<const std::int8_t*>(p))}; }
  // Each lane's first (0) or second (1) scale.
  template <int index>
  I32x8 of_run() const {
    const int16x8_t pairs = vreinterpretq_s16_s8(v);
    const int16x8_t scales = vshrq_n_s16(index == 0 ? vshlq_n_s16(pairs, 8) : pairs, 8);
    return {{vmovl_s16(vget_low_s16(scales)), vmovl_high_s16(scales)}};
  }
  // scale[0] * sums[0] + scale[1] * sums[1]
  I32x8 times(const std::int16_t* sums) const {
    const I32x8 first = of_run<0>(), second = of_run<1>();
    return {{vmlaq_n_s32(vmulq_n_s32(first.v[0], sums[0]), second.v[0], sums[1]),
             vmlaq_n_s32(vmulq_n_s32(first.v[1], sums[0]), second.v[1], sums[1])}};
  }
};

inline ScalePairs low_nibbles(ScalePairs a) {
  return {vandq_s8(a.v, vdupq_n_s8(0x0f))};
}
inline ScalePairs high_nibbles(ScalePairs a) {
  return {vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(a.v), 4))};
}

// Products of weights of up to 7 bits, which are signed bytes as they are; any number of them. DotU4() is 0.
struct DotU4 {
  int32x4_t v[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};

  void add(U8x32 weights, const std::int8_t* x) {
    const int8x16_t quad = splat_4_bytes(x);
    v[0] = vdotq_s32(v[0], vreinterpretq_s8_u8(weights.v[0]), quad);
    v[1] = vdotq_s32(v[1], vreinterpretq_s8_u8(weights.v[1]), quad);
  }
  I32x8 sum() const { return {{v[0], v[1]}}; }
};

// Up to 4 products of weights of 5 bits in each of two runs.
struct DotU5 {
  DotU4 all;

  template <int run>
  void add(U8x32 weights, const std::int8_t* x) {
    all.add(weights, x);
  }
  I32x8 sum() const { return all.sum(); }
};

// Up to 8 products of weights of 8 bits less 128: with the top bit turned they are signed bytes.
struct DotU8 {
  DotU4 all;

  void add(U8x32 weights, const std::int8_t* x) {
    const uint8x16_t top = vdupq_n_u8(0x80);
    all.add({{veorq_u8(weights.v[0], top), veorq_u8(weights.v[1], top)}}, x);
  }
  I32x8 sum(std::int32_t) const { return all.sum(); }
};

// scale * products of weights of 3 bits, over two runs of 16.
struct DotScaledU3 {
  DotU4 runs[2];

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x) {
    for (int quad = 0; quad < 4; ++quad) runs[run].add(weights[quad], x + 4 * quad);
  }
  I32x8 sum(ScalePairs scales) const {
    const I32x8 first = scales.of_run<0>(), second = scales.of_run<1>();
    return {{vmlaq_s32(vmulq_s32(runs[0].v[0], first.v[0]), runs[1].v[0], second.v[0]),
             vmlaq_s32(vmulq_s32(runs[0].v[1], first.v[1]), runs[1].v[1], second.v[1])}};
  }
};

// scale * products of weights of 6 bits, over two runs of 16.
struct DotScaledU6 {
  int32x4_t v[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x, ScalePairs scales) {
    DotU4 dot;
    for (int quad = 0; quad < 4; ++quad) dot.add(weights[quad], x + 4 * quad);
    const I32x8 scale = scales.of_run<run>();
    v[0] = vmlaq_s32(v[0], dot.v[0], scale.v[0]);
    v[1] = vmlaq_s32(v[1], dot.v[1], scale.v[1]);
  }
  I32x8 sum() const { return {{v[0], v[1]}}; }
};

struct I8x32 {
  int16x8_t v[4];  // widened to 16 bits: two lanes in each

  static I8x32 load(const void* p) {
    const auto* bytes = static_cast<const std::int8_t*>(p);
    return {{vmovl_s8(vld1_s8(bytes)), vmovl_s8(vld1_s8(bytes + 8)), vmovl_s8(vld1_s8(bytes + 16)),
             vmovl_s8(vld1_s8(bytes + 24))}};
  }
};

// Products of signed bytes with integers of 16 bits; 64 of them fit.
struct DotI16 {
  int32x4_t v[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};  // two lanes in each

  void add(const I8x32& bytes, const std::int16_t* x) {
    const int16x4_t factors = vld1_s16(x);
    for (int i = 0; i < 4; ++i) {
      const int32x4_t first = vmull_s16(vget_low_s16(bytes.v[i]), factors);
      const int32x4_t second = vmull_s16(vget_high_s16(bytes.v[i]), factors);
      v[i] = vaddq_s32(v[i], vpaddq_s32(first, second));  // two sums of a lane side by side
    }
  }
  I32x8 sum() const { return {{vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])}}; }
};

}  // namespace minisgl::MINISGL_ISA
