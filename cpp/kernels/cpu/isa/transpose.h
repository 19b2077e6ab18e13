// Transposes 8 x 8 floats.
#pragma once

#include "core/simd.h"

namespace minisgl::MINISGL_ISA {

// out[column * out_stride + row] = rows[row] lane `column`.
inline void store_transposed(const F32x8 (&rows)[8], float* out, int out_stride) {
#if defined(MINISGL_ISA_AVX2) || defined(MINISGL_ISA_AVX512VNNI)
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_stride, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
  }
#else
  for (int row = 0; row < 8; ++row) {
    float lanes[8];
    rows[row].store(lanes);
    for (int column = 0; column < 8; ++column) out[column * out_stride + row] = lanes[column];
  }
#endif
}

}  // namespace minisgl::MINISGL_ISA
