// What the attention kernels share where the cache holds e4m3: rows of bytes in shared memory, and their values as f16.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

// Four bytes as two pairs of f16, exact. GPUs before compute capability 8.9 have no instruction for it: there sign,
// exponent and mantissa move to their places in an f16, whose exponent has a bias that is 8 larger. Of their NaN they
// make 480: a token's head that holds a NaN has it in its scale as well, on every GPU.
__device__ __forceinline__ void widen(std::uint32_t bytes, std::uint32_t& low, std::uint32_t& high) {
#if __CUDA_ARCH__ >= 890
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n}\n"
      : "=r"(low), "=r"(high)
      : "r"(bytes));
#else
  const auto move = [](std::uint32_t pair) {  // each byte in the upper half of 16 bits
    pair = (pair & 0x80008000u) | (pair >> 1 & 0x3f803f80u);
    const half2 value = __hmul2(*reinterpret_cast<const half2*>(&pair), __float2half2_rn(256.0f));
    return *reinterpret_cast<const std::uint32_t*>(&value);
  };
  low = move(__byte_perm(bytes, 0, 0x1404));
  high = move(__byte_perm(bytes, 0, 0x3424));
#endif
}

// Whether a scale is a number: what it belongs to is finite then, and nothing else is.
__device__ __forceinline__ bool is_finite(float scale) {
  return scale <= 3.4028234e38f;
}

// What f16 values of a row are multiplied by, over 2^8: 2^8 times the row's scale, so that small scales keep their
// digits. The largest value that f16 holds bounds it; NaN for a scale that is no number.
__device__ __forceinline__ std::uint32_t row_factor(float scale) {
  constexpr float kMostScale = 65504.0f / 448.0f;
  const float factor = is_finite(scale) ? 256.0f * fminf(scale, kMostScale) : __int_as_float(0x7fffffff);
  return pack2<half>(factor, factor);
}

// 16 bytes of a row as f16 that the row's factor is in; zeros for the factor 0, NaN among the bytes or not.
__device__ __forceinline__ void widen_chunk(const uint4& bytes, std::uint32_t row_factor, uint4 (&to)[2]) {
  const half2 factor = *reinterpret_cast<const half2*>(&row_factor);
  const std::uint32_t kept = row_factor != 0 ? 0xffffffffu : 0u;
  const std::uint32_t words[4] = {bytes.x & kept, bytes.y & kept, bytes.z & kept, bytes.w & kept};
  std::uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) widen(words[i], pairs[2 * i], pairs[2 * i + 1]);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const half2 small = __hmul2(*reinterpret_cast<const half2*>(&pairs[i]), __float2half2_rn(1.0f / 256.0f));
    const half2 value = __hmul2(small, factor);
    pairs[i] = *reinterpret_cast<const std::uint32_t*>(&value);
  }
  to[0] = {pairs[0], pairs[1], pairs[2], pairs[3]};
  to[1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
}

// Rows of a tile in shared memory, [positions, dim] bytes each and [positions] scales.
struct ByteRows {
  unsigned char *keys, *values;
  float *key_scales, *value_scales;
};

// load_rows() for bytes, of which a lane knows a position's row: its own_row, -1 for zeros. place(row, chunk): where
// the 16 bytes from column 16 * chunk on of a row lie in a tile.
template <int dim, int size, typename Place>
__device__ __forceinline__ void load_byte_rows(const Pages<e4m3>& pages, std::int32_t own_row, const ByteRows& to,
                                               int lane, const Place& place) {
  constexpr int chunks = dim / 16;
  static_assert(size <= 32 && size * chunks % 32 == 0);
#pragma unroll 4
  for (int i = 0; i < size * chunks / 32; ++i) {
    const int row = (32 * i + lane) / chunks, chunk = (32 * i + lane) % chunks;
    const std::int32_t cache_row = __shfl_sync(0xffffffffu, own_row, row);
    const bool valid = cache_row >= 0 && chunk * 16 < pages.head_dim;
    const std::int64_t from = valid ? std::int64_t{cache_row} * pages.head_dim + chunk * 16 : 0;
    copy_16_async(to.keys + place(row, chunk), pages.keys + from, valid);
    copy_16_async(to.values + place(row, chunk), pages.values + from, valid);
  }
  if (lane < size) {
    const std::int32_t from = own_row >= 0 ? own_row : 0;
    copy_4_async(to.key_scales + lane, pages.key_scales + from, own_row >= 0);
    copy_4_async(to.value_scales + lane, pages.value_scales + from, own_row >= 0);
  }
}

}  // namespace minisgl::cuda
