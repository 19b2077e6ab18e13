// One block of a format, taken apart into integers and scales, and put into or read out of the packed layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace minisgl {

// w[i] = scale[run] * q[i] + offset[run], runs of 16 or 32 columns as the format has them; a block of any quantised
// format.
struct QuantBlock {
  std::int16_t q[256];       // as stored: unsigned for the 4-bit and 6-bit formats
  std::uint16_t d, m;        // f16: the scale, and the offset (q4_1) or its scale (q4_k)
  std::uint8_t scales[16];   // q4_k: 8 of 6 bits; q6_k: 16 of int8
  std::uint8_t minimums[8];  // q4_k: 8 of 6 bits
};

// Takes a stored block apart.
void unpack_file_block(DType dtype, const std::byte* file_block, QuantBlock& block);

// Bytes of one block of a packed group: 8 rows x block_size columns.
std::int64_t packed_block_bytes(DType dtype);

// Writes `block` as row `lane` of a packed block, and reads it back. `packed` starts as zeros.
void write_packed_block(DType dtype, const QuantBlock& block, int lane, std::byte* packed);
void read_packed_block(DType dtype, const std::byte* packed, int lane, QuantBlock& block);

// The block_size values of a block, as f32.
void dequantize_block(DType dtype, const QuantBlock& block, float* out);

}  // namespace minisgl
