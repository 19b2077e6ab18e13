// Eight lanes of arithmetic in one vocabulary, for kernels that are compiled once per instruction set.
//
// A kernel file in <room>/cpu/isa/ is compiled for each instruction set with that set's flags and MINISGL_ISA as the
// name of the namespace its code lives in (minisgl_isa_sources in cpp/CMakeLists.txt):
//
//     #include "core/simd.h"
//     namespace minisgl::MINISGL_ISA {
//     void kernel(...) { ... }
//     }
//
// Such a file must not instantiate inline functions or templates from outside this namespace (std::min, std::vector,
// MINISGL_CHECK): the linker keeps one copy of them for the whole program, and might keep one made of instructions
// that the processor lacks. Intrinsics, plain C functions, `static` functions and this header are fine.
//
// What each set defines (lanes are numbered from the lowest address):
//   F32x8            + - *; zero, splat, load, store, load_f16, store_f16, load_bf16, store_bf16;
//                    load_bf16_column<column> (the first or the second of each of 8 pairs);
//                    fma(a, b, c) = a * b + c; div, sqrt, min, max, abs, round (nearest, ties to even),
//                    pow2 (2^n, integral n in [-126, 127]); reduce_add, reduce_max (one fixed order)
//   I32x8            + -; zero, splat, load, store; to_f32; to_i32 (nearest, ties to even); load_u8, load_i8 (widen 8
//                    bytes); shift_left<n>; reduce_add; store_i8 (8 bytes, or four to 32; values in [-128, 127]);
//                    store_i16 (values in [-32768, 32767])
//   U8x32            32 bytes, 8 lanes of 4: |; load; low_nibbles, high_nibbles; move_bits<from, count, to>; look_up
//   DotU4, DotU5, DotU8, DotScaledU3, DotScaledU6, ScalePairs   exact integer dot products; each lane holds 4 weights
//   and meets the
//                    same 4 activations in [-127, 127]
//   I8x32, DotI16    8 lanes of 4 signed bytes, and their exact dot products with the same 4 integers of 16 bits
//   Narrow, Wide     names for the types of 8 lanes, and for the widest that the set has (Narrow again, or 16 lanes
//   with
//                    the same operations, core/simd_avx512.h); their load functions take two addresses, of lanes 0 to 7
//                    and of lanes 8 to 15, and Narrow reads the first only; load_i8s takes one, of
//                    all lanes side by side
//   tile_rows        how many rows of activations a tile of Wide vectors keeps in registers
// min and max return the second operand when one is NaN. fma rounds twice in the portable set and once in the others.
#pragma once

#ifndef MINISGL_ISA
#error "core/simd.h is for files compiled through minisgl_isa_sources"
#endif

#include <cstdint>
#include <cstring>

#if defined(MINISGL_ISA_AMX)  // kernels that tiles add work in the vectors of the set below
#define MINISGL_ISA_AVX512VNNI
#endif
#if defined(MINISGL_ISA_AVX2) || defined(MINISGL_ISA_AVX512VNNI)
#include "core/simd_x86.h"
#elif defined(MINISGL_ISA_DOTPROD)
#include "core/simd_neon.h"
#else
#include "core/simd_portable.h"
#endif

namespace minisgl::MINISGL_ISA {

struct Narrow {
  static constexpr int groups = 1;  // a group has 8 lanes
  using F32 = F32x8;
  using U8 = U8x32;
  using DotU4 = MINISGL_ISA::DotU4;
  using DotU5 = MINISGL_ISA::DotU5;
  using DotU8 = MINISGL_ISA::DotU8;
  using DotScaledU3 = MINISGL_ISA::DotScaledU3;
  using DotScaledU6 = MINISGL_ISA::DotScaledU6;
  using ScalePairs = MINISGL_ISA::ScalePairs;

  static F32 load_f32(const void* p, const void*) { return F32::load(static_cast<const float*>(p)); }
  static F32 load_f16(const void* p, const void*) { return F32::load_f16(p); }
  static F32 load_bf16(const void* p, const void*) { return F32::load_bf16(p); }
  template <int column>
  static F32 load_bf16_column(const void* p) {
    return F32::load_bf16_column<column>(p);
  }
  static F32 load_u8(const void* p, const void*) { return to_f32(I32x8::load_u8(p)); }
  static F32 load_i8(const void* p, const void*) { return to_f32(I32x8::load_i8(p)); }
  static F32 load_i8s(const void* p) { return to_f32(I32x8::load_i8(p)); }
  static U8 load_quads(const void* p, const void*) { return U8::load(p); }
  static ScalePairs load_scales(const void* p, const void*) { return ScalePairs::load(p); }
};

}  // namespace minisgl::MINISGL_ISA

#if defined(MINISGL_ISA_AVX512VNNI)
#include "core/simd_avx512.h"
#else
namespace minisgl::MINISGL_ISA {
using Wide = Narrow;
constexpr int tile_rows = 4;
}  // namespace minisgl::MINISGL_ISA
#endif
