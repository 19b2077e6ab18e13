// The formats of blocks as tiles take them: 32 columns of 16 outputs, a part, as signed bytes quad by quad, and its
// scales as f32. A row's product with a part is, as in the kernels without tiles,
//
//   dot = the sum of q * x, exact; of formats with a scale for each 16 columns that of either run times its run_scale
//   y += dot * (scale * x's scale)
//   y += minimum * scaled_sum of x                                              Minimum::per_part
//   y += (the sum of x in either run times its run_minimum) * (minimum * x's scale)    Minimum::per_run
#pragma once

#include "core/simd.h"
#include "gemm/kernel.h"
#include "gemm/layout.h"

namespace minisgl::MINISGL_ISA {

enum class Minimum { none, per_part, per_run };

constexpr int part_quads = 8, vector_outputs = 2 * group_rows;

struct alignas(64) WeightPart {
  // Of two runs, each has the other's quads as zeros.
  std::int8_t q[2][part_quads][4 * vector_outputs];
  float scale[vector_outputs], minimum[vector_outputs];
  float run_scale[2][vector_outputs], run_minimum[2][vector_outputs];
};

// Of a part of two groups, the second `next` bytes behind the first.
struct PackedPart {
  const std::byte* p;
  std::int64_t next;

  U8x64 quads(int offset) const { return Wide::load_quads(p + offset, p + offset + next); }
  F32x16 f16(int offset) const { return Wide::load_f16(p + offset, p + offset + next); }
  F32x16 bf16(int offset) const { return Wide::load_bf16(p + offset, p + offset + next); }
  F32x16 u8(int offset) const { return Wide::load_u8(p + offset, p + offset + next); }
  F32x16 i8(int offset) const { return Wide::load_i8(p + offset, p + offset + next); }
  // For each output two bytes: the first or the second.
  I32x16 byte_of_pair(int offset, int index) const {
    const __m512i pairs = _mm512_cvtepi16_epi32(load_2x128(p + offset, p + offset + next));
    return {index == 0 ? _mm512_srai_epi32(_mm512_slli_epi32(pairs, 24), 24) : _mm512_srai_epi32(pairs, 8)};
  }
  PackedPart at(int offset) const { return {p + offset, next}; }
};

// Calls f with the constants 0 to 3.
template <typename F>
inline void for_quads(F f) {
  f.template operator()<0>();
  f.template operator()<1>();
  f.template operator()<2>();
  f.template operator()<3>();
}

inline void store_quads(WeightPart& out, int run, int quad, U8x64 quads) {
  _mm512_store_si512(out.q[run][quad], quads.v);
}
// What stands for 0 becomes 0.
inline U8x64 minus(U8x64 a, int zero) {
  return {_mm512_sub_epi8(a.v, _mm512_set1_epi8(static_cast<char>(zero)))};
}
inline U8x64 signed_values(const std::int8_t (&table)[16], U8x64 places) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), places.v)};
}

inline void unpack_nibbles(PackedPart part, int zero, WeightPart& out) {
  for_quads([&]<int quad>() {
    const U8x64 nibbles = part.quads(32 * quad);
    store_quads(out, 0, quad, minus(low_nibbles(nibbles), zero));
    store_quads(out, 0, quad + 4, minus(high_nibbles(nibbles), zero));
  });
}
inline void unpack_5_bits(PackedPart part, int zero, WeightPart& out) {
  const U8x64 top = part.quads(nibble_bytes);
  for_quads([&]<int quad>() {
    const U8x64 nibbles = part.quads(32 * quad);
    store_quads(out, 0, quad, minus(low_nibbles(nibbles) | move_bits<quad, 1, 4>(top), zero));
    store_quads(out, 0, quad + 4, minus(high_nibbles(nibbles) | move_bits<quad + 4, 1, 4>(top), zero));
  });
}
inline void unpack_values(PackedPart part, const std::int8_t (&table)[16], WeightPart& out) {
  for_quads([&]<int quad>() {
    const U8x64 nibbles = part.quads(32 * quad);
    store_quads(out, 0, quad, signed_values(table, low_nibbles(nibbles)));
    store_quads(out, 0, quad + 4, signed_values(table, high_nibbles(nibbles)));
  });
}
// Quads of run 0, then of run 1, each beside zeros.
inline void store_runs(WeightPart& out, int quad, U8x64 run_0, U8x64 run_1) {
  const U8x64 zeros{_mm512_setzero_si512()};
  store_quads(out, 0, quad, run_0);
  store_quads(out, 0, quad + 4, zeros);
  store_quads(out, 1, quad, zeros);
  store_quads(out, 1, quad + 4, run_1);
}
inline void store_run_scales(PackedPart part, int offset, WeightPart& out) {
  for (int run = 0; run < 2; ++run) to_f32(part.byte_of_pair(offset, run)).store(out.run_scale[run]);
}

// A format of parts that lie side by side, `bytes` each, and how one is taken apart.
struct PartFormat {
  static constexpr int parts_per_block = 1, head_bytes = 0, runs = 1;
  static constexpr Minimum minimum = Minimum::none;
};
// One with 8 parts behind a head.
struct BlockFormat : PartFormat {
  static constexpr int parts_per_block = 8, head_bytes = 16;
};

struct Q8_0Parts : PartFormat {
  static constexpr int bytes = q8_0_block_bytes;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    for (int quad = 0; quad < part_quads; ++quad) store_quads(out, 0, quad, minus(part.quads(32 * quad), 128));
    part.f16(256).store(out.scale);
  }
};
struct Q4_0Parts : PartFormat {
  static constexpr int bytes = q4_0_block_bytes;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_nibbles(part, 8, out);
    part.f16(nibble_bytes).store(out.scale);
  }
};
struct Q4_1Parts : PartFormat {
  static constexpr int bytes = q4_1_block_bytes;
  static constexpr Minimum minimum = Minimum::per_part;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_nibbles(part, 0, out);
    part.f16(nibble_bytes).store(out.scale);
    part.f16(nibble_bytes + 16).store(out.minimum);
  }
};
struct Q5_0Parts : PartFormat {
  static constexpr int bytes = q5_0_block_bytes;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_5_bits(part, 16, out);
    part.f16(nibble_bytes + bit_bytes).store(out.scale);
  }
};
struct Q5_1Parts : PartFormat {
  static constexpr int bytes = q5_1_block_bytes;
  static constexpr Minimum minimum = Minimum::per_part;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_5_bits(part, 0, out);
    part.f16(nibble_bytes + bit_bytes).store(out.scale);
    part.f16(nibble_bytes + bit_bytes + 16).store(out.minimum);
  }
};
struct Iq4NlParts : PartFormat {
  static constexpr int bytes = iq4_nl_block_bytes;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_values(part, iq4_values, out);
    part.f16(nibble_bytes).store(out.scale);
  }
};
struct Mxfp4Parts : PartFormat {
  static constexpr int bytes = mxfp4_block_bytes;
  static void unpack(PackedPart, PackedPart part, WeightPart& out) {
    unpack_values(part, mxfp4_values, out);
    part.bf16(nibble_bytes).store(out.scale);
  }
};
struct Iq4XsParts : BlockFormat {
  static constexpr int bytes = iq4_xs_part_bytes;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    unpack_values(part, iq4_values, out);
    (head.f16(0) * part.i8(nibble_bytes)).store(out.scale);
  }
};

// d and dmin, then parts with a scale and a minimum.
struct MinimumFormat : BlockFormat {
  static constexpr int head_bytes = 32;
  static constexpr Minimum minimum = Minimum::per_part;
  static void unpack_scales(PackedPart head, PackedPart scales, WeightPart& out) {
    (head.f16(0) * scales.u8(0)).store(out.scale);
    ((F32x16::zero() - head.f16(16)) * scales.u8(8)).store(out.minimum);
  }
};
struct Q4_KParts : MinimumFormat {
  static constexpr int bytes = q4_k_part_bytes;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    unpack_nibbles(part, 0, out);
    unpack_scales(head, part.at(nibble_bytes), out);
  }
};
struct Q5_KParts : MinimumFormat {
  static constexpr int bytes = q5_k_part_bytes;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    unpack_5_bits(part, 0, out);
    unpack_scales(head, part.at(nibble_bytes + bit_bytes), out);
  }
};

struct Q6_KParts : BlockFormat {
  static constexpr int bytes = q6_k_part_bytes, runs = 2;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    const U8x64 top[2] = {part.quads(nibble_bytes), part.quads(nibble_bytes + 32)};
    for_quads([&]<int quad>() {
      const U8x64 nibbles = part.quads(32 * quad);
      store_runs(out, quad, minus(low_nibbles(nibbles) | move_bits<2 * quad, 2, 4>(top[0]), 32),
                 minus(high_nibbles(nibbles) | move_bits<2 * quad, 2, 4>(top[1]), 32));
    });
    head.f16(0).store(out.scale);
    store_run_scales(part, nibble_bytes + pair_bytes, out);
  }
};
struct Q3_KParts : BlockFormat {
  static constexpr int bytes = q3_k_part_bytes, runs = 2;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    const U8x64 pairs[2] = {part.quads(0), part.quads(32)}, top = part.quads(pair_bytes);
    for_quads([&]<int quad>() {
      store_runs(out, quad, minus(move_bits<2 * quad, 2, 0>(pairs[0]) | move_bits<quad, 1, 2>(top), 4),
                 minus(move_bits<2 * quad, 2, 0>(pairs[1]) | move_bits<quad + 4, 1, 2>(top), 4));
    });
    head.f16(0).store(out.scale);
    store_run_scales(part, pair_bytes + bit_bytes, out);
  }
};
struct Q2_KParts : BlockFormat {
  static constexpr int bytes = q2_k_part_bytes, runs = 2, head_bytes = 32;
  static constexpr Minimum minimum = Minimum::per_run;
  static void unpack(PackedPart head, PackedPart part, WeightPart& out) {
    const U8x64 pairs[2] = {part.quads(0), part.quads(32)};
    for_quads([&]<int quad>() {
      store_runs(out, quad, move_bits<2 * quad, 2, 0>(pairs[0]), move_bits<2 * quad, 2, 0>(pairs[1]));
    });
    head.f16(0).store(out.scale);
    (F32x16::zero() - head.f16(16)).store(out.minimum);
    for (int run = 0; run < 2; ++run) {
      const __m512i both = part.byte_of_pair(pair_bytes, run).v, low = _mm512_set1_epi32(15);
      to_f32(I32x16{_mm512_and_si512(both, low)}).store(out.run_scale[run]);
      to_f32(I32x16{_mm512_and_si512(_mm512_srli_epi32(both, 4), low)}).store(out.run_minimum[run]);
    }
  }
};

}  // namespace minisgl::MINISGL_ISA
