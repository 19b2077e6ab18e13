// core/simd.h for AVX2 + FMA + F16C, and for AVX-512 VNNI in 256-bit registers. Included by core/simd.h only.
#pragma once

#include <immintrin.h>

namespace minisgl::MINISGL_ISA {

struct F32x8 {
  __m256 v;

  static F32x8 zero() { return {_mm256_setzero_ps()}; }
  static F32x8 splat(float value) { return {_mm256_set1_ps(value)}; }
  static F32x8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }

  static F32x8 load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
  void store_f16(void* p) const {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F32x8 load_bf16(const void* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  template <int column>
  static F32x8 load_bf16_column(const void* p) {
    const __m256i pairs = _mm256_loadu_si256(static_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(column == 0
                                    ? _mm256_slli_epi32(pairs, 16)
                                    : _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))))};
  }
  void store_bf16(void* p) const {  // ties to even; a NaN stays a NaN
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
};

inline F32x8 operator+(F32x8 a, F32x8 b) {
  return {_mm256_add_ps(a.v, b.v)};
}
inline F32x8 operator-(F32x8 a, F32x8 b) {
  return {_mm256_sub_ps(a.v, b.v)};
}
inline F32x8 operator*(F32x8 a, F32x8 b) {
  return {_mm256_mul_ps(a.v, b.v)};
}
inline F32x8 div(F32x8 a, F32x8 b) {
  return {_mm256_div_ps(a.v, b.v)};
}
inline F32x8 sqrt(F32x8 a) {
  return {_mm256_sqrt_ps(a.v)};
}
inline F32x8 min(F32x8 a, F32x8 b) {
  return {_mm256_min_ps(a.v, b.v)};
}
inline F32x8 max(F32x8 a, F32x8 b) {
  return {_mm256_max_ps(a.v, b.v)};
}
inline F32x8 abs(F32x8 a) {
  return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)};
}
inline F32x8 fma(F32x8 a, F32x8 b, F32x8 c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline F32x8 round(F32x8 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x8 pow2(F32x8 n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}
inline float reduce_add(F32x8 a) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}
inline float reduce_max(F32x8 a) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_shuffle_ps(top, top, 1)));
}

struct I32x8 {
  __m256i v;

  static I32x8 zero() { return {_mm256_setzero_si256()}; }
  static I32x8 splat(std::int32_t value) { return {_mm256_set1_epi32(value)}; }
  static I32x8 load(const std::int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  void store(std::int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static I32x8 load_u8(const void* p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)))};
  }
  static I32x8 load_i8(const void* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)))};
  }
};

inline I32x8 operator+(I32x8 a, I32x8 b) {
  return {_mm256_add_epi32(a.v, b.v)};
}
inline I32x8 operator-(I32x8 a, I32x8 b) {
  return {_mm256_sub_epi32(a.v, b.v)};
}
template <int bits>
inline I32x8 shift_left(I32x8 a) {
  return {_mm256_slli_epi32(a.v, bits)};
}
inline F32x8 to_f32(I32x8 a) {
  return {_mm256_cvtepi32_ps(a.v)};
}
inline std::int32_t reduce_add(I32x8 a) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
inline void store_i8(const I32x8 (&a)[4], std::int8_t* p) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a[0].v, a[1].v), _mm256_packs_epi32(a[2].v, a[3].v));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(bytes, order));
}
inline void store_i8(I32x8 a, std::int8_t* p) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a.v, a.v), _mm256_setzero_si256());
  const __m256i order = _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
}
inline void store_i16(I32x8 a, std::int16_t* p) {
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
}
inline I32x8 to_i32(F32x8 a) {
  return {_mm256_cvtps_epi32(a.v)};
}

struct U8x32 {
  __m256i v;

  static U8x32 load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
};

inline U8x32 operator|(U8x32 a, U8x32 b) {
  return {_mm256_or_si256(a.v, b.v)};
}
inline U8x32 low_nibbles(U8x32 a) {
  return {_mm256_and_si256(a.v, _mm256_set1_epi8(0x0f))};
}
inline U8x32 high_nibbles(U8x32 a) {
  return {_mm256_and_si256(_mm256_srli_epi16(a.v, 4), _mm256_set1_epi8(0x0f))};
}
// Bits [from, from + count) of each byte, moved to [to, to + count); the others are 0.
template <int from, int count, int to>
inline U8x32 move_bits(U8x32 a) {
  const __m256i moved = from <= to ? _mm256_slli_epi16(a.v, to - from) : _mm256_srli_epi16(a.v, from - to);
  return {_mm256_and_si256(moved, _mm256_set1_epi8(((1 << count) - 1) << to))};
}
// table[i] for each byte i, all below 16.
inline U8x32 look_up(const std::uint8_t (&table)[16], U8x32 places) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), places.v)};
}

// ---- dot products: each of 8 lanes holds 4 weights and meets the same 4 activations. All sums are exact. ----

inline std::int64_t load_8_bytes(const void* p) {
  std::int64_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return bytes;
}
inline __m256i splat_4_bytes(const void* p) {
  std::int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return _mm256_set1_epi32(quad);
}

// The signed 8-bit scales of two runs of 16 weights, for 8 lanes: 16 bytes, a lane's two scales side by side.
struct ScalePairs {
  __m256i v;

  static ScalePairs load(const void* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
  }
  // A lane's first (0) or second (1) scale in both halves of the lane.
  template <int index>
  __m256i twice() const {
    constexpr int order = index == 0 ? 0xa0 : 0xf5;
    return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, order), order);
  }
  // scale[0] * sums[0] + scale[1] * sums[1]
  I32x8 times(const std::int16_t* sums) const { return {_mm256_madd_epi16(v, splat_4_bytes(sums))}; }
};

inline ScalePairs low_nibbles(ScalePairs a) {
  return {_mm256_and_si256(a.v, _mm256_set1_epi16(0x0f))};
}
inline ScalePairs high_nibbles(ScalePairs a) {
  return {_mm256_and_si256(_mm256_srli_epi16(a.v, 4), _mm256_set1_epi16(0x0f))};
}

// Compilers put such additions off until the end of a block, keep every product until then, and run out of registers.
// This makes a sum exist where it is written.
inline void keep_in_register(__m256i& sum) {
  asm("" : "+x"(sum));
}

#if defined(MINISGL_ISA_AVX512VNNI)

struct I8x32 {
  __m512i v;  // widened to 16 bits

  static I8x32 load(const void* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
  }
};

// Products of signed bytes with integers of 16 bits; 64 of them fit.
struct DotI16 {
  __m512i v = _mm512_setzero_si512();  // a lane's two sums side by side

  void add(I8x32 bytes, const std::int16_t* x) {
    v = _mm512_dpwssd_epi32(v, bytes.v, _mm512_set1_epi64(load_8_bytes(x)));
  }
  I32x8 sum() const {
    const __m256i pairs = _mm256_hadd_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    return {_mm256_permute4x64_epi64(pairs, 0xd8)};
  }
};

// Up to 8 products of weights of 4 bits; DotU4() is 0.
struct DotU4 {
  __m256i v = _mm256_setzero_si256();

  void add(U8x32 weights, const std::int8_t* x) { v = _mm256_dpbusd_epi32(v, weights.v, splat_4_bytes(x)); }
  I32x8 sum() const { return {v}; }
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

// Up to 8 products of weights of 8 bits less 128.
struct DotU8 {
  __m256i v = _mm256_setzero_si256();

  void add(U8x32 weights, const std::int8_t* x) { v = _mm256_dpbusd_epi32(v, weights.v, splat_4_bytes(x)); }
  I32x8 sum(std::int32_t sum_of_x) const { return I32x8{v} - I32x8::splat(128 * sum_of_x); }
};

// scale * products of weights of 3 bits, over two runs of 16. A run adds up to at most 16 * 7 * 127 = 14,224: 16 bits.
struct DotScaledU3 {
  __m256i runs[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x) {
    for (int quad = 0; quad < 4; ++quad)
      runs[run] = _mm256_dpbusd_epi32(runs[run], weights[quad].v, splat_4_bytes(x + 4 * quad));
  }
  I32x8 sum(ScalePairs scales) const {
    const __m256i pairs = _mm256_blend_epi16(runs[0], _mm256_slli_epi32(runs[1], 16), 0xaa);
    return {_mm256_madd_epi16(pairs, scales.v)};
  }
};

// scale * products of weights of 6 bits, over two runs of 16.
struct DotScaledU6 {
  __m256i v = _mm256_setzero_si256();

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x, ScalePairs scales) {
    __m256i dot = _mm256_setzero_si256();
    for (int quad = 0; quad < 4; ++quad) dot = _mm256_dpbusd_epi32(dot, weights[quad].v, splat_4_bytes(x + 4 * quad));
    v = _mm256_add_epi32(v, _mm256_mullo_epi32(dot, _mm256_srai_epi32(scales.twice<run>(), 16)));
  }
  I32x8 sum() const { return {v}; }
};

#else

struct I8x32 {
  __m256i low, high;  // widened to 16 bits

  static I8x32 load(const void* p) {
    const auto* halves = static_cast<const __m128i*>(p);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepi8_epi16(_mm_loadu_si128(halves + 1))};
  }
};

// Products of signed bytes with integers of 16 bits; 64 of them fit.
struct DotI16 {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();  // a lane's two sums side by side

  void add(const I8x32& bytes, const std::int16_t* x) {
    const __m256i factors = _mm256_set1_epi64x(load_8_bytes(x));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(bytes.low, factors));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(bytes.high, factors));
  }
  I32x8 sum() const { return {_mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8)}; }
};

// Up to 8 products of weights of 4 bits; DotU4() is 0. 8 products add up to at most 8 * 2 * 15 * 128 = 30,720.
struct DotU4 {
  __m256i v = _mm256_setzero_si256();  // 16 sums of 16 bits

  void add(U8x32 weights, const std::int8_t* x) {
    v = _mm256_add_epi16(v, _mm256_maddubs_epi16(weights.v, splat_4_bytes(x)));
    keep_in_register(v);
  }
  I32x8 sum() const { return {_mm256_madd_epi16(v, _mm256_set1_epi16(1))}; }
};

// Up to 4 products of weights of 5 bits in each of two runs: 4 add up to at most 4 * 2 * 31 * 127 = 31,496.
struct DotU5 {
  DotU4 runs[2];

  template <int run>
  void add(U8x32 weights, const std::int8_t* x) {
    runs[run].add(weights, x);
  }
  I32x8 sum() const { return runs[0].sum() + runs[1].sum(); }
};

// Up to 8 products of weights of 8 bits less 128. Two products of 8 bits overflow the 16 bits of maddubs; their
// nibbles, summed apart, do not.
struct DotU8 {
  DotU4 low, high;

  void add(U8x32 weights, const std::int8_t* x) {
    low.add(low_nibbles(weights), x);
    high.add(high_nibbles(weights), x);
  }
  I32x8 sum(std::int32_t sum_of_x) const {
    return low.sum() + shift_left<4>(high.sum()) - I32x8::splat(128 * sum_of_x);
  }
};

// scale * products of weights of 3 bits, over two runs of 16. 4 products add up to at most 4 * 2 * 7 * 127 = 7,112.
struct DotScaledU3 {
  __m256i runs[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};  // each 16 sums of 16 bits

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x) {
    for (int quad = 0; quad < 4; ++quad)
      runs[run] = _mm256_add_epi16(runs[run], _mm256_maddubs_epi16(weights[quad].v, splat_4_bytes(x + 4 * quad)));
    keep_in_register(runs[run]);
  }
  I32x8 sum(ScalePairs scales) const {
    return {
        _mm256_add_epi32(_mm256_madd_epi16(runs[0], scales.twice<0>()), _mm256_madd_epi16(runs[1], scales.twice<1>()))};
  }
};

// scale * products of weights of 6 bits, over two runs of 16. Two products of maddubs add up to at most
// 2 * 2 * 63 * 128 = 32,256; the scale is applied where 16 bits become 32.
struct DotScaledU6 {
  __m256i v = _mm256_setzero_si256();

  template <int run>
  void add(const U8x32 (&weights)[4], const std::int8_t* x, ScalePairs scales) {
    const __m256i scale = scales.twice<run>();
    const __m256i first = _mm256_add_epi16(_mm256_maddubs_epi16(weights[0].v, splat_4_bytes(x)),
                                           _mm256_maddubs_epi16(weights[1].v, splat_4_bytes(x + 4)));
    const __m256i second = _mm256_add_epi16(_mm256_maddubs_epi16(weights[2].v, splat_4_bytes(x + 8)),
                                            _mm256_maddubs_epi16(weights[3].v, splat_4_bytes(x + 12)));
    v = _mm256_add_epi32(v, _mm256_add_epi32(_mm256_madd_epi16(first, scale), _mm256_madd_epi16(second, scale)));
    keep_in_register(v);
  }
  I32x8 sum() const { return {v}; }
};

#endif

}  // namespace minisgl::MINISGL_ISA
