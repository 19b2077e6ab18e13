// The formats that files store weights in, an element at a time.
#pragma once

#include <cstdint>

#include "core/cuda/math.cuh"

namespace minisgl::cuda::file_formats {

// File blocks have odd sizes, so their halves are read byte by byte.
__device__ __forceinline__ float load_half(const std::uint8_t* p) {
  const auto bits = static_cast<unsigned short>(p[0] | p[1] << 8);
  return __half2float(__ushort_as_half(bits));
}

// Element `i` of a block, as gemm/file_blocks.cpp and block_codec.cpp define the formats.
//
// Formats that are computed as they are (quantised.h) also say the integer of an element, and its group's scale and
// what stands beside it: a value is scale * integer + offset, or scale * (integer - middle or zero).
struct Scales {
  float scale, beside;
};
struct Q8_0 {
  static constexpr int kElements = 32, kBytes = 34;
  static __device__ int integer(const std::uint8_t* p, int i) { return p[2 + i] ^ 0x80; }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), 128}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(static_cast<std::int8_t>(p[2 + i]));
  }
};
__device__ __forceinline__ int nibble(const std::uint8_t* p, int i) {  // 16 bytes: elements 0 to 15 low, 16 to 31 high
  return i < 16 ? p[i] & 15 : p[i - 16] >> 4;
}
struct Q4_0 {
  static constexpr int kElements = 32, kBytes = 18;
  static __device__ int integer(const std::uint8_t* p, int i) { return nibble(p + 2, i); }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), -8 * load_half(p)}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 2, i) - 8);
  }
};
struct Q4_1 {
  static constexpr int kElements = 32, kBytes = 20;
  static __device__ int integer(const std::uint8_t* p, int i) { return nibble(p + 4, i); }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), load_half(p + 2)}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 4, i)) + load_half(p + 2);
  }
};
__device__ __forceinline__ int bit(const std::uint8_t* p, int i) {
  return p[i / 8] >> i % 8 & 1;
}
struct Q5_0 {
  static constexpr int kElements = 32, kBytes = 22;
  static __device__ int integer(const std::uint8_t* p, int i) { return nibble(p + 6, i) | bit(p + 2, i) << 4; }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), -16 * load_half(p)}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>((nibble(p + 6, i) | bit(p + 2, i) << 4) - 16);
  }
};
struct Q5_1 {
  static constexpr int kElements = 32, kBytes = 24;
  static __device__ int integer(const std::uint8_t* p, int i) { return nibble(p + 8, i) | bit(p + 4, i) << 4; }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), load_half(p + 2)}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * static_cast<float>(nibble(p + 8, i) | bit(p + 4, i) << 4) + load_half(p + 2);
  }
};
__device__ __forceinline__ float iq4_value(int q) {
  constexpr std::int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return static_cast<float>(values[q]);
}
struct IQ4_NL {
  static constexpr int kElements = 32, kBytes = 18;
  static __device__ float at(const std::uint8_t* p, int i) { return load_half(p) * iq4_value(nibble(p + 2, i)); }
};
struct MXFP4 {
  static constexpr int kElements = 32, kBytes = 17;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int q = nibble(p + 1, i), exponent = q >> 1 & 3;
    const int doubled = exponent == 0 ? q & 1 : (2 | (q & 1)) << (exponent - 1);  // 0, 1, 2, 3, 4, 6, 8, 12
    return ldexpf(static_cast<float>(q < 8 ? doubled : -doubled), p[0] - 128);
  }
};
// d, dmin, 12 bytes of 6-bit scales and minimums: those of element i.
__device__ __forceinline__ Scales scales_k(const std::uint8_t* p, int i) {
  const int run = i / 32;
  const std::uint8_t* packed = p + 4;
  const int scale = run < 4 ? packed[run] & 63 : (packed[run + 4] & 15) | (packed[run - 4] >> 6 << 4);
  const int minimum = run < 4 ? packed[run + 4] & 63 : (packed[run + 4] >> 4) | (packed[run] >> 6 << 4);
  return {load_half(p) * static_cast<float>(scale), -load_half(p + 2) * static_cast<float>(minimum)};
}
__device__ __forceinline__ int nibble_by_64(const std::uint8_t* p, int i) {  // each 32 bytes: two runs of 32
  const std::uint8_t byte = p[i / 64 * 32 + i % 32];
  return i / 32 % 2 == 0 ? byte & 15 : byte >> 4;
}
__device__ __forceinline__ int bit_pair(const std::uint8_t* p,
                                        int i) {  // byte l of 32: elements l, l + 32, l + 64, l + 96 of 128
  return p[32 * (i / 128) + i % 32] >> (i % 128 / 32 * 2) & 3;
}
struct Q4_K {
  static constexpr int kElements = 256, kBytes = 144;
  static __device__ int integer(const std::uint8_t* p, int i) { return nibble_by_64(p + 16, i); }
  static __device__ Scales scales(const std::uint8_t* p, int i) { return scales_k(p, i); }
  static __device__ float at(const std::uint8_t* p, int i) {
    const Scales of = scales(p, i);
    return of.scale * static_cast<float>(integer(p, i)) + of.beside;
  }
};
struct Q5_K {
  static constexpr int kElements = 256, kBytes = 176;
  static __device__ int integer(const std::uint8_t* p, int i) {
    return nibble_by_64(p + 48, i) | bit(p + 16 + i % 32, i / 32) << 4;
  }
  static __device__ Scales scales(const std::uint8_t* p, int i) { return scales_k(p, i); }
  static __device__ float at(const std::uint8_t* p, int i) {
    const Scales of = scales(p, i);
    return of.scale * static_cast<float>(integer(p, i)) + of.beside;
  }
};
struct Q2_K {
  static constexpr int kElements = 256, kBytes = 84;
  static __device__ float at(const std::uint8_t* p, int i) {
    const std::uint8_t both = p[i / 16];
    return load_half(p + 80) * static_cast<float>(both & 15) * static_cast<float>(bit_pair(p + 16, i)) -
           load_half(p + 82) * static_cast<float>(both >> 4);
  }
};
struct Q3_K {
  static constexpr int kElements = 256, kBytes = 110;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int run = i / 16;
    const std::uint8_t* packed = p + 96;
    const int low = run < 8 ? packed[run] & 15 : packed[run - 8] >> 4;
    const int scale = (low | (packed[8 + run % 4] >> (run / 4 * 2) & 3) << 4) - 32;
    const int q = (bit_pair(p + 32, i) | bit(p + i % 32, i / 32) << 2) - 4;
    return load_half(p + 108) * static_cast<float>(scale) * static_cast<float>(q);
  }
};
struct IQ4_XS {
  static constexpr int kElements = 256, kBytes = 136;
  static __device__ float at(const std::uint8_t* p, int i) {
    const int run = i / 32, high = (p[2] | p[3] << 8) >> (2 * run) & 3;
    const int scale = ((p[4 + run / 2] >> (run % 2 * 4) & 15) | high << 4) - 32;
    return load_half(p) * static_cast<float>(scale) * iq4_value(nibble(p + 8 + 16 * run, i % 32));
  }
};
struct Q6_K {
  static constexpr int kElements = 256, kBytes = 210;
  static __device__ int integer(const std::uint8_t* p, int i) {
    const int part = i / 128, j = i % 128;
    const int low = p[64 * part + j % 64] >> (j < 64 ? 0 : 4) & 15;
    const int high = p[128 + 32 * part + j % 32] >> (j / 32 * 2) & 3;
    return low | high << 4;
  }
  static __device__ Scales scales(const std::uint8_t* p, int i) {
    return {load_half(p + 208) * static_cast<float>(static_cast<std::int8_t>(p[192 + i / 16])), 32};
  }
  static __device__ float at(const std::uint8_t* p, int i) {
    return scales(p, i).scale * static_cast<float>(integer(p, i) - 32);
  }
};
// Groups of int4 checkpoints: scale, zero, two elements to a byte.
template <int group>
struct Int4 {
  static constexpr int kElements = group, kBytes = 4 + group / 2;
  static __device__ int integer(const std::uint8_t* p, int i) { return p[4 + i / 2] >> (i % 2 * 4) & 15; }
  static __device__ Scales scales(const std::uint8_t* p, int) { return {load_half(p), load_half(p + 2)}; }
  static __device__ float at(const std::uint8_t* p, int i) {
    return load_half(p) * (static_cast<float>(integer(p, i)) - load_half(p + 2));
  }
};

}  // namespace minisgl::cuda::file_formats
