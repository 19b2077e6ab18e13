// How quantised weights lie in a GPU's memory, and how they become what tensor cores multiply.
//
// A unit has 8 rows (r) and 128 columns: four runs (j) of 32, of which each of four lanes, the shares (s) of a row,
// takes 8 columns. In order it holds
//
//   low bits    [r][s] 16 bytes: for each run a word of 4 bits of 8 columns; of 8 bits [j / 2][r][s] 16 bytes: for each
//               of two runs two words
//   high bits   of 5 bits: [r][s] words; of 6: [r][s] pairs of words
//   scales      [r][group] f16, or pairs of f16 with the offset or the zero
//
// Share s has columns 2 s, 2 s + 1, 2 s + 8 and 2 s + 9 of each half of a run, as the tensor cores' operands of 16 bits
// are held. Two words of a run have its integers as bytes: byte b of word w is column 16 (b % 2) + 8 w + 2 s + b / 2.
// Of 4 bits, word 0 are the low halves of the stored word's bytes, word 1 the high ones. A bit of 5 lies at bit
// 2 j + w of the byte that it belongs to; two bits of 6 at 4 (j % 2) + 2 w of word j / 2.
#pragma once

#include <cstdint>

#include "core/cuda/math.cuh"
#include "gemm/cuda/quantised.h"

namespace minisgl::cuda {

enum class ZeroKind { offset, zero, middle };

template <int bits_, int group_, ZeroKind zero_>
struct UnitForm {
  static constexpr int kBits = bits_, kGroup = group_;
  static constexpr ZeroKind kZero = zero_;
  static constexpr bool kHalves = kGroup == 16;  // of a run, each with a scale
  static constexpr int kGroups = 128 / kGroup;   // of a unit's row
  static constexpr int kScaleBytes = zero_ == ZeroKind::middle ? 2 : 4;
  static constexpr int kLowWords = kBits == 8 ? 8 : 4, kHighWords = kBits == 5 ? 1 : kBits == 6 ? 2 : 0;  // of a share
  static constexpr int kHighAt = 128 * kLowWords, kScalesAt = kHighAt + 128 * kHighWords;
  static constexpr int kScaleRowBytes = kGroups * kScaleBytes;
  static constexpr int kBytes = kScalesAt + 8 * kScaleRowBytes;
  static_assert(kBytes % 32 == 0);
  // What floats are made of bytes by: their bits are those of the base, with the byte at kByteAt.
  static constexpr std::uint32_t kBaseBits = kBits == 8 ? 0x47000000u : 0x43000000u;
  static constexpr int kByteAt = kBits == 8 ? 1 : 2;
  static constexpr float kBase = kBits == 8 ? 32768.0f : 128.0f;
  static constexpr float kMiddle = 1 << (kBits - 1);

  // The column in its run of byte b of word w of share s.
  static __host__ __device__ constexpr int column(int s, int w, int b) { return 16 * (b % 2) + 8 * w + 2 * s + b / 2; }
};

template <WeightFormat format>
struct FormOf;
template <>
struct FormOf<WeightFormat::q4_offset_32> : UnitForm<4, 32, ZeroKind::offset> {};
template <>
struct FormOf<WeightFormat::q4_zero_64> : UnitForm<4, 64, ZeroKind::zero> {};
template <>
struct FormOf<WeightFormat::q4_zero_128> : UnitForm<4, 128, ZeroKind::zero> {};
template <>
struct FormOf<WeightFormat::q5_offset_32> : UnitForm<5, 32, ZeroKind::offset> {};
template <>
struct FormOf<WeightFormat::q6_middle_16> : UnitForm<6, 16, ZeroKind::middle> {};
template <>
struct FormOf<WeightFormat::q8_middle_32> : UnitForm<8, 32, ZeroKind::middle> {};
template <>
struct FormOf<WeightFormat::q8_offset_16> : UnitForm<8, 16, ZeroKind::offset> {};

// Calls function.template operator()<FormOf<format>>() of a quantised format.
template <typename Function>
void with_form(WeightFormat format, const Function& function) {
  using enum WeightFormat;
  switch (format) {
    case q4_offset_32: return function.template operator()<FormOf<q4_offset_32>>();
    case q4_zero_64: return function.template operator()<FormOf<q4_zero_64>>();
    case q4_zero_128: return function.template operator()<FormOf<q4_zero_128>>();
    case q5_offset_32: return function.template operator()<FormOf<q5_offset_32>>();
    case q6_middle_16: return function.template operator()<FormOf<q6_middle_16>>();
    case q8_middle_32: return function.template operator()<FormOf<q8_middle_32>>();
    case q8_offset_16: return function.template operator()<FormOf<q8_offset_16>>();
    case bf16:
    case e4m3_rows:
    case e4m3_blocks: break;
  }
}

// A row's scale of one group, and what is added to scale * (sum of q x) for each unit of the sum of x.
template <typename Form>
struct GroupScale {
  float scale, offset;

  // The group's scale, or pair.
  __device__ __forceinline__ explicit GroupScale(std::uint32_t word) {
    const float2 both = __half22float2(*reinterpret_cast<const half2*>(&word));
    scale = both.x;
    if constexpr (Form::kZero == ZeroKind::offset) {
      offset = both.y;
    } else if constexpr (Form::kZero == ZeroKind::zero) {
      offset = -both.x * both.y;
    } else {
      offset = -both.x * Form::kMiddle;
    }
  }
};
// Of group `group` of a row. `load` reads a T at a byte of the row's scales.
template <typename Form, typename Load>
__device__ __forceinline__ GroupScale<Form> scale_of(int group, const Load& load) {
  if constexpr (Form::kZero == ZeroKind::middle) {
    return GroupScale<Form>(load.template operator()<std::uint16_t>(2 * group));
  } else {
    return GroupScale<Form>(load.template operator()<std::uint32_t>(4 * group));
  }
}

// A share of one row of a unit.
template <typename Form>
struct RowShare {
  std::uint32_t low[Form::kLowWords];
  std::uint32_t high[Form::kHighWords > 0 ? Form::kHighWords : 1];

  // place: 4 r + s. `load` reads a T at a byte of the unit.
  template <typename Load>
  __device__ __forceinline__ void load(int place, const Load& load) {
#pragma unroll
    for (int k = 0; k < Form::kLowWords / 4; ++k) {
      const uint4 words = load.template operator()<uint4>(512 * k + 16 * place);
      low[4 * k] = words.x;
      low[4 * k + 1] = words.y;
      low[4 * k + 2] = words.z;
      low[4 * k + 3] = words.w;
    }
    if constexpr (Form::kHighWords == 1) {
      high[0] = load.template operator()<std::uint32_t>(Form::kHighAt + 4 * place);
    } else if constexpr (Form::kHighWords == 2) {
      const uint2 words = load.template operator()<uint2>(Form::kHighAt + 8 * place);
      high[0] = words.x;
      high[1] = words.y;
    }
  }
  // The integers of run j, as bytes.
  __device__ __forceinline__ void bytes(int j, std::uint32_t (&to)[2]) const {
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      if constexpr (Form::kBits == 8) {
        to[w] = low[2 * j + w];
      } else {
        to[w] = (w == 0 ? low[j] : low[j] >> 4) & 0x0f0f0f0fu;
      }
      if constexpr (Form::kBits == 5) {
        const int at = 2 * j + w;
        to[w] |= (at >= 4 ? high[0] >> (at - 4) : high[0] << (4 - at)) & 0x10101010u;
      } else if constexpr (Form::kBits == 6) {
        const int at = 4 * (j % 2) + 2 * w;
        to[w] |= (at >= 4 ? high[j / 2] >> (at - 4) : high[j / 2] << (4 - at)) & 0x30303030u;
      }
    }
  }
};

// What reads a T at a byte of `from`.
__device__ __forceinline__ auto loads_from(const std::byte* from) {
  return [from]<typename T>(int at) { return __ldg(reinterpret_cast<const T*>(from + at)); };
}

// Byte b of a word of integers plus the form's base.
template <typename Form>
__device__ __forceinline__ float based(std::uint32_t word, int b) {
  // Bytes 4 to 6 of the two words are zeros, byte 7 is the base's.
  const unsigned order = 0x7444u & ~(0xfu << (4 * Form::kByteAt)) | static_cast<unsigned>(b) << (4 * Form::kByteAt);
  return __uint_as_float(__byte_perm(word, Form::kBaseBits, order));
}
// Two neighbouring columns of half h of a run as bf16: those of word w.
template <typename Form>
__device__ __forceinline__ std::uint32_t value_pair(std::uint32_t word, int h, const GroupScale<Form>& of) {
  const float offset = of.offset - Form::kBase * of.scale;
  return pack2<bf16>(fmaf(based<Form>(word, h), of.scale, offset), fmaf(based<Form>(word, h + 2), of.scale, offset));
}

}  // namespace minisgl::cuda
