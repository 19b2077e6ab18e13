// core/simd.h: 16 lanes in the 512-bit registers of AVX-512 with VNNI. Included by core/simd.h only.
//
// Lane by lane the same operations as Narrow's, so that a lane's bits are the same in both.
#pragma once

#include <immintrin.h>

namespace minisgl::MINISGL_ISA {

inline __m512i join(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline __m256i load_2x128(const void* low, const void* high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(low))),
                                 _mm_loadu_si128(static_cast<const __m128i*>(high)), 1);
}
inline __m128i load_2x64(const void* low, const void* high) {
  return _mm_unpacklo_epi64(_mm_loadl_epi64(static_cast<const __m128i*>(low)),
                            _mm_loadl_epi64(static_cast<const __m128i*>(high)));
}
inline __m512i splat_4_bytes_wide(const void* p) {
  std::int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return _mm512_set1_epi32(quad);
}

struct F32x16 {
  __m512 v;

  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  static F32x16 splat(float value) { return {_mm512_set1_ps(value)}; }
  static F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
};

inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

struct I32x16 {
  __m512i v;

  static I32x16 splat(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
};

inline I32x16 operator-(I32x16 a, I32x16 b) {
  return {_mm512_sub_epi32(a.v, b.v)};
}
template <int bits>
inline I32x16 shift_left(I32x16 a) {
  return {_mm512_slli_epi32(a.v, bits)};
}
inline F32x16 to_f32(I32x16 a) {
  return {_mm512_cvtepi32_ps(a.v)};
}

struct U8x64 {
  __m512i v;
};

inline U8x64 operator|(U8x64 a, U8x64 b) {
  return {_mm512_or_si512(a.v, b.v)};
}
inline U8x64 low_nibbles(U8x64 a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(0x0f))};
}
inline U8x64 high_nibbles(U8x64 a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(0x0f))};
}
template <int from, int count, int to>
inline U8x64 move_bits(U8x64 a) {
  const __m512i moved = from <= to ? _mm512_slli_epi16(a.v, to - from) : _mm512_srli_epi16(a.v, from - to);
  return {_mm512_and_si512(moved, _mm512_set1_epi8(((1 << count) - 1) << to))};
}
inline U8x64 look_up(const std::uint8_t (&table)[16], U8x64 places) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), places.v)};
}

struct Wide {
  static constexpr int groups = 2;
  using F32 = F32x16;
  using U8 = U8x64;

  struct ScalePairs {
    __m512i v;

    template <int index>
    __m512i twice() const {
      constexpr int order = index == 0 ? 0xa0 : 0xf5;
      return _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(v, order), order);
    }
    I32x16 times(const std::int16_t* sums) const { return {_mm512_madd_epi16(v, splat_4_bytes_wide(sums))}; }
  };

  struct DotU4 {
    __m512i v = _mm512_setzero_si512();

    void add(U8x64 weights, const std::int8_t* x) { v = _mm512_dpbusd_epi32(v, weights.v, splat_4_bytes_wide(x)); }
    I32x16 sum() const { return {v}; }
  };

  struct DotU5 {
    DotU4 all;

    template <int run>
    void add(U8x64 weights, const std::int8_t* x) {
      all.add(weights, x);
    }
    I32x16 sum() const { return all.sum(); }
  };

  struct DotU8 {
    __m512i v = _mm512_setzero_si512();

    void add(U8x64 weights, const std::int8_t* x) { v = _mm512_dpbusd_epi32(v, weights.v, splat_4_bytes_wide(x)); }
    I32x16 sum(std::int32_t sum_of_x) const { return I32x16{v} - I32x16::splat(128 * sum_of_x); }
  };

  struct DotScaledU3 {
    __m512i runs[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};

    template <int run>
    void add(const U8x64 (&weights)[4], const std::int8_t* x) {
      for (int quad = 0; quad < 4; ++quad)
        runs[run] = _mm512_dpbusd_epi32(runs[run], weights[quad].v, splat_4_bytes_wide(x + 4 * quad));
    }
    I32x16 sum(ScalePairs scales) const {
      const __m512i pairs = _mm512_mask_blend_epi16(0xaaaaaaaa, runs[0], _mm512_slli_epi32(runs[1], 16));
      return {_mm512_madd_epi16(pairs, scales.v)};
    }
  };

  struct DotScaledU6 {
    __m512i v = _mm512_setzero_si512();

    template <int run>
    void add(const U8x64 (&weights)[4], const std::int8_t* x, ScalePairs scales) {
      __m512i dot = _mm512_setzero_si512();
      for (int quad = 0; quad < 4; ++quad)
        dot = _mm512_dpbusd_epi32(dot, weights[quad].v, splat_4_bytes_wide(x + 4 * quad));
      v = _mm512_add_epi32(v, _mm512_mullo_epi32(dot, _mm512_srai_epi32(scales.twice<run>(), 16)));
    }
    I32x16 sum() const { return {v}; }
  };

  static F32 load_f32(const void* low, const void* high) {
    return {_mm512_castsi512_ps(join(load_256(low), load_256(high)))};
  }
  static F32 load_f16(const void* low, const void* high) { return {_mm512_cvtph_ps(load_2x128(low, high))}; }
  static F32 load_bf16(const void* low, const void* high) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_2x128(low, high)), 16))};
  }
  template <int column>
  static F32 load_bf16_column(const void* p) {  // of 16 pairs side by side
    const __m512i pairs = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(column == 0
                                    ? _mm512_slli_epi32(pairs, 16)
                                    : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
  }
  static F32 load_u8(const void* low, const void* high) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_2x64(low, high)))};
  }
  static F32 load_i8(const void* low, const void* high) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_2x64(low, high)))};
  }
  static F32 load_i8s(const void* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
  }
  static U8 load_quads(const void* low, const void* high) { return {join(load_256(low), load_256(high))}; }
  static ScalePairs load_scales(const void* low, const void* high) {
    return {_mm512_cvtepi8_epi16(load_2x128(low, high))};
  }
};

inline Wide::ScalePairs low_nibbles(Wide::ScalePairs a) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi16(0x0f))};
}
inline Wide::ScalePairs high_nibbles(Wide::ScalePairs a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi16(0x0f))};
}

constexpr int tile_rows = 8;

}  // namespace minisgl::MINISGL_ISA
