// GGUF's blocks, as files store them, to integers and scales.
#include <cstring>

#include "gemm/block_codec.h"

namespace minisgl {
namespace {

std::uint16_t load_u16(const std::byte* p) {
  std::uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

std::uint8_t byte_at(const std::byte* p, int i) {
  return static_cast<std::uint8_t>(p[i]);
}

// 16 bytes: elements 0 to 15 in the low nibbles, 16 to 31 in the high ones.
void unpack_nibbles(const std::byte* p, std::uint8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = byte_at(p, i) & 0x0f;
    q[i + 16] = byte_at(p, i) >> 4;
  }
}

// 4 bytes: bit i is the fifth bit of element i.
void add_fifth_bits(const std::byte* p, std::uint8_t* q) {
  for (int i = 0; i < 32; ++i) q[i] = static_cast<std::uint8_t>(q[i] | (byte_at(p, i / 8) >> i % 8 & 1) << 4);
}

// 12 bytes of 6-bit scales and minimums.
void unpack_scales_and_minimums(const std::byte* p, QuantBlock& block) {
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t low = byte_at(p, i), mid = byte_at(p, i + 4), high = byte_at(p, i + 8);
    block.scales[i] = low & 63;
    block.minimums[i] = mid & 63;
    block.scales[i + 4] = static_cast<std::uint8_t>((high & 0x0f) | (low >> 6 << 4));
    block.minimums[i + 4] = static_cast<std::uint8_t>((high >> 4) | (mid >> 6 << 4));
  }
}

// 128 bytes: each 32 hold two runs of 32 columns.
void unpack_nibbles_by_64(const std::byte* p, std::uint8_t* q) {
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      q[64 * pair + i] = byte_at(p, 32 * pair + i) & 0x0f;
      q[64 * pair + 32 + i] = byte_at(p, 32 * pair + i) >> 4;
    }
  }
}

// 64 bytes: byte l of each 32 holds two bits of columns l, l + 32, l + 64 and l + 96 of one half.
std::uint8_t two_bits(const std::byte* p, int i) {
  return byte_at(p, 32 * (i / 128) + i % 32) >> (i % 128 / 32 * 2) & 3;
}

// d, dmin, scales and minimums, 128 bytes of nibbles.
void unpack_q4_k(const std::byte* p, QuantBlock& block) {
  block.d = load_u16(p);
  block.m = load_u16(p + 2);
  unpack_scales_and_minimums(p + 4, block);
  unpack_nibbles_by_64(p + 16, block.q);
}

// d, dmin, scales and minimums, 32 bytes of fifth bits (bit r of byte l is that of run r's column l), 128 of nibbles.
void unpack_q5_k(const std::byte* p, QuantBlock& block) {
  block.d = load_u16(p);
  block.m = load_u16(p + 2);
  unpack_scales_and_minimums(p + 4, block);
  unpack_nibbles_by_64(p + 48, block.q);
  for (int i = 0; i < 256; ++i)
    block.q[i] = static_cast<std::uint8_t>(block.q[i] | (byte_at(p + 16, i % 32) >> i / 32 & 1) << 4);
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d.
void unpack_q6_k(const std::byte* p, QuantBlock& block) {
  for (int i = 0; i < 256; ++i) {
    const int nibble = byte_at(p, 64 * (i / 128) + i % 64) >> (i % 128 < 64 ? 0 : 4) & 0x0f;
    block.q[i] = static_cast<std::uint8_t>(nibble | two_bits(p + 128, i) << 4);
  }
  std::memcpy(block.scales, p + 192, 16);
  block.d = load_u16(p + 208);
}

// 16 scales with minimums, 64 bytes of bit pairs, d, dmin.
void unpack_q2_k(const std::byte* p, QuantBlock& block) {
  std::memcpy(block.scales, p, 16);
  for (int i = 0; i < 256; ++i) block.q[i] = two_bits(p + 16, i);
  block.d = load_u16(p + 80);
  block.m = load_u16(p + 82);
}

// 32 bytes of third bits (as q5_k's fifth), 64 of bit pairs, 12 of 6-bit scales plus 32, d.
void unpack_q3_k(const std::byte* p, QuantBlock& block) {
  for (int i = 0; i < 256; ++i)
    block.q[i] = static_cast<std::uint8_t>(two_bits(p + 32, i) | (byte_at(p, i % 32) >> i / 32 & 1) << 2);
  const std::byte* packed = p + 96;
  for (int i = 0; i < 16; ++i) {
    const int low = byte_at(packed, i % 8) >> (i < 8 ? 0 : 4) & 0x0f;
    const int high = byte_at(packed, 8 + i % 4) >> (i / 4 * 2) & 3;
    block.scales[i] = static_cast<std::uint8_t>((low | high << 4) - 32);
  }
  block.d = load_u16(p + 108);
}

// d, 8 high bit pairs and 8 low nibbles of the scales plus 32, 128 bytes of nibbles: each 16 hold a run of 32 columns.
void unpack_iq4_xs(const std::byte* p, QuantBlock& block) {
  block.d = load_u16(p);
  const int high = load_u16(p + 2);
  for (int run = 0; run < 8; ++run) {
    const int low = byte_at(p + 4, run / 2) >> (run % 2 * 4) & 0x0f;
    block.scales[run] = static_cast<std::uint8_t>((low | (high >> 2 * run & 3) << 4) - 32);
    unpack_nibbles(p + 8 + 16 * run, block.q + 32 * run);
  }
}

// 2^(e - 128): half of what the exponent says, because the values of the table are doubled. Exact in bf16.
std::uint16_t mxfp4_scale(std::uint8_t e) {
  return static_cast<std::uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7);
}

}  // namespace

void unpack_file_block(DType dtype, const std::byte* p, QuantBlock& block) {
  switch (dtype) {
    case DType::q8_0:
      block.d = load_u16(p);
      for (int i = 0; i < 32; ++i) block.q[i] = byte_at(p, 2 + i) ^ 0x80;  // plus 128
      break;
    case DType::q4_0:
    case DType::iq4_nl:
      block.d = load_u16(p);
      unpack_nibbles(p + 2, block.q);
      break;
    case DType::q4_1:
      block.d = load_u16(p);
      block.m = load_u16(p + 2);
      unpack_nibbles(p + 4, block.q);
      break;
    case DType::q5_0:
      block.d = load_u16(p);
      unpack_nibbles(p + 6, block.q);
      add_fifth_bits(p + 2, block.q);
      break;
    case DType::q5_1:
      block.d = load_u16(p);
      block.m = load_u16(p + 2);
      unpack_nibbles(p + 8, block.q);
      add_fifth_bits(p + 4, block.q);
      break;
    case DType::mxfp4:
      block.d = mxfp4_scale(byte_at(p, 0));
      unpack_nibbles(p + 1, block.q);
      break;
    case DType::q2_k: unpack_q2_k(p, block); break;
    case DType::q3_k: unpack_q3_k(p, block); break;
    case DType::q4_k: unpack_q4_k(p, block); break;
    case DType::q5_k: unpack_q5_k(p, block); break;
    case DType::q6_k: unpack_q6_k(p, block); break;
    case DType::iq4_xs: unpack_iq4_xs(p, block); break;
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::int4_64:
    case DType::int4_128:
    case DType::i8:
    case DType::f8e4m3: break;
  }
}

}  // namespace minisgl
