// GGUF blocks to integers and scales, these to packed blocks (gemm/layout.h) and back.
#include "gemm/block_codec.h"

#include <cstring>

#include "core/half.h"
#include "gemm/layout.h"

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
void unpack_nibbles(const std::byte* p, std::int16_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = byte_at(p, i) & 0x0f;
    q[i + 16] = byte_at(p, i) >> 4;
  }
}

// d, dmin, 12 bytes of 6-bit scales and minimums, 128 bytes of nibbles: each 32 bytes hold two runs of 32 columns.
void unpack_q4_k(const std::byte* p, QuantBlock& block) {
  block.d = load_u16(p);
  block.m = load_u16(p + 2);
  const std::byte* packed = p + 4;
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t low = byte_at(packed, i), mid = byte_at(packed, i + 4), high = byte_at(packed, i + 8);
    block.scales[i] = low & 63;
    block.minimums[i] = mid & 63;
    block.scales[i + 4] = static_cast<std::uint8_t>((high & 0x0f) | (low >> 6 << 4));
    block.minimums[i + 4] = static_cast<std::uint8_t>((high >> 4) | (mid >> 6 << 4));
  }
  const std::byte* nibbles = p + 16;
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      block.q[64 * pair + i] = byte_at(nibbles, 32 * pair + i) & 0x0f;
      block.q[64 * pair + 32 + i] = byte_at(nibbles, 32 * pair + i) >> 4;
    }
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d. Each half of 128 columns has 64 + 32 bytes: byte l of
// the latter holds the high bits of columns l, l + 32, l + 64 and l + 96.
void unpack_q6_k(const std::byte* p, QuantBlock& block) {
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = p + 64 * half;
    const std::byte* high = p + 128 + 32 * half;
    for (int i = 0; i < 128; ++i) {
      const int nibble = byte_at(low, i % 64) >> (i < 64 ? 0 : 4) & 0x0f;
      const int pair = byte_at(high, i % 32) >> (i / 32 * 2) & 3;
      block.q[128 * half + i] = static_cast<std::int16_t>(nibble | pair << 4);
    }
  }
  std::memcpy(block.scales, p + 192, 16);
  block.d = load_u16(p + 208);
}

// Where columns of a row are within the 128 bytes of nibbles of 32 columns: quads 0 to 3 low, 4 to 7 high.
void write_nibbles(const std::int16_t* q, int lane, std::byte* packed) {
  for (int i = 0; i < 16; ++i)
    packed[32 * (i / 4) + 4 * lane + i % 4] = static_cast<std::byte>((q[i] & 0x0f) | (q[i + 16] & 0x0f) << 4);
}

void read_nibbles(const std::byte* packed, int lane, std::int16_t* q) {
  for (int i = 0; i < 16; ++i) {
    const std::uint8_t both = byte_at(packed, 32 * (i / 4) + 4 * lane + i % 4);
    q[i] = both & 0x0f;
    q[i + 16] = both >> 4;
  }
}

void write_u16(std::uint16_t value, int lane, std::byte* packed) {
  std::memcpy(packed + 2 * lane, &value, sizeof(value));
}

std::uint16_t read_u16(const std::byte* packed, int lane) {
  return load_u16(packed + 2 * lane);
}

}  // namespace

void unpack_file_block(DType dtype, const std::byte* p, QuantBlock& block) {
  switch (dtype) {
    case DType::q8_0:
      block.d = load_u16(p);
      for (int i = 0; i < 32; ++i) block.q[i] = static_cast<std::int8_t>(p[2 + i]);
      break;
    case DType::q4_0:
      block.d = load_u16(p);
      unpack_nibbles(p + 2, block.q);
      break;
    case DType::q4_1:
      block.d = load_u16(p);
      block.m = load_u16(p + 2);
      unpack_nibbles(p + 4, block.q);
      break;
    case DType::q4_k: unpack_q4_k(p, block); break;
    case DType::q6_k: unpack_q6_k(p, block); break;
    default: break;
  }
}

std::int64_t packed_block_bytes(DType dtype) {
  switch (dtype) {
    case DType::q8_0: return q8_0_block_bytes;
    case DType::q4_0: return q4_0_block_bytes;
    case DType::q4_1: return q4_1_block_bytes;
    case DType::q4_k: return q4_k_block_bytes;
    case DType::q6_k: return q6_k_block_bytes;
    default: return group_rows * dtype_info(dtype).block_bytes;
  }
}

void write_packed_block(DType dtype, const QuantBlock& block, int lane, std::byte* packed) {
  switch (dtype) {
    case DType::q8_0:
      for (int i = 0; i < 32; ++i) packed[32 * (i / 4) + 4 * lane + i % 4] = static_cast<std::byte>(block.q[i] + 128);
      write_u16(block.d, lane, packed + 256);
      break;
    case DType::q4_0:
      write_nibbles(block.q, lane, packed);
      write_u16(block.d, lane, packed + nibble_bytes);
      break;
    case DType::q4_1:
      write_nibbles(block.q, lane, packed);
      write_u16(block.d, lane, packed + nibble_bytes);
      write_u16(block.m, lane, packed + nibble_bytes + 16);
      break;
    case DType::q4_k:
      write_u16(block.d, lane, packed);
      write_u16(block.m, lane, packed + 16);
      for (int part = 0; part < 8; ++part) {
        std::byte* p = packed + 32 + part * q4_k_part_bytes;
        write_nibbles(block.q + 32 * part, lane, p);
        p[nibble_bytes + lane] = static_cast<std::byte>(block.scales[part]);
        p[nibble_bytes + 8 + lane] = static_cast<std::byte>(block.minimums[part]);
      }
      break;
    case DType::q6_k:
      write_u16(block.d, lane, packed);
      for (int part = 0; part < 8; ++part) {
        std::byte* p = packed + 16 + part * q6_k_part_bytes;
        const std::int16_t* q = block.q + 32 * part;
        write_nibbles(q, lane, p);
        for (int i = 0; i < 32; ++i)  // quad i / 4 at bits 2 * (quad % 4) of vector quad / 4
          p[nibble_bytes + 32 * (i / 16) + 4 * lane + i % 4] |= static_cast<std::byte>(q[i] >> 4 << (2 * (i / 4 % 4)));
        std::memcpy(p + nibble_bytes + 64 + 2 * lane, block.scales + 2 * part, 2);
      }
      break;
    default: break;
  }
}

void read_packed_block(DType dtype, const std::byte* packed, int lane, QuantBlock& block) {
  switch (dtype) {
    case DType::q8_0:
      for (int i = 0; i < 32; ++i)
        block.q[i] = static_cast<std::int16_t>(byte_at(packed, 32 * (i / 4) + 4 * lane + i % 4) - 128);
      block.d = read_u16(packed + 256, lane);
      break;
    case DType::q4_0:
      read_nibbles(packed, lane, block.q);
      block.d = read_u16(packed + nibble_bytes, lane);
      break;
    case DType::q4_1:
      read_nibbles(packed, lane, block.q);
      block.d = read_u16(packed + nibble_bytes, lane);
      block.m = read_u16(packed + nibble_bytes + 16, lane);
      break;
    case DType::q4_k:
      block.d = read_u16(packed, lane);
      block.m = read_u16(packed + 16, lane);
      for (int part = 0; part < 8; ++part) {
        const std::byte* p = packed + 32 + part * q4_k_part_bytes;
        read_nibbles(p, lane, block.q + 32 * part);
        block.scales[part] = byte_at(p, nibble_bytes + lane);
        block.minimums[part] = byte_at(p, nibble_bytes + 8 + lane);
      }
      break;
    case DType::q6_k:
      block.d = read_u16(packed, lane);
      for (int part = 0; part < 8; ++part) {
        const std::byte* p = packed + 16 + part * q6_k_part_bytes;
        std::int16_t* q = block.q + 32 * part;
        read_nibbles(p, lane, q);
        for (int i = 0; i < 32; ++i)
          q[i] = static_cast<std::int16_t>(
              q[i] | (byte_at(p, nibble_bytes + 32 * (i / 16) + 4 * lane + i % 4) >> (2 * (i / 4 % 4)) & 3) << 4);
        std::memcpy(block.scales + 2 * part, p + nibble_bytes + 64 + 2 * lane, 2);
      }
      break;
    default: break;
  }
}

void dequantize_block(DType dtype, const QuantBlock& block, float* out) {
  const float d = f16_to_f32(block.d);
  switch (dtype) {
    case DType::q8_0:
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.q[i]);
      break;
    case DType::q4_0:
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.q[i] - 8);
      break;
    case DType::q4_1:
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(block.q[i]) + f16_to_f32(block.m);
      break;
    case DType::q4_k:
      for (int i = 0; i < 256; ++i) {
        const float scale = d * static_cast<float>(block.scales[i / 32]);
        const float minimum = f16_to_f32(block.m) * static_cast<float>(block.minimums[i / 32]);
        out[i] = scale * static_cast<float>(block.q[i]) - minimum;
      }
      break;
    case DType::q6_k:
      for (int i = 0; i < 256; ++i) {
        const float scale = d * static_cast<float>(static_cast<std::int8_t>(block.scales[i / 16]));
        out[i] = scale * static_cast<float>(block.q[i] - 32);
      }
      break;
    default: break;
  }
}

}  // namespace minisgl
