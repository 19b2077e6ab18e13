// One block of a format, taken apart into integers and scales, and put into or read out of the packed layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace minisgl {

// w[i] = scale[run] * value(q[i]) + offset[run], runs of 16 or 32 columns as the format has them; a block of any
// quantised format.
struct QuantBlock {
  std::uint8_t q[256];       // unsigned (q8_0: plus 128); for iq4_nl, iq4_xs and mxfp4 places in a table of values
  std::uint16_t d, m;        // f16: the scale, and the offset (q4_1, q5_1) or its scale (K formats); mxfp4's d is bf16
  std::uint8_t scales[16];   // q4_k, q5_k: 8 of 6 bits; q3_k, q6_k: 16 of int8; iq4_xs: 8 of int8; q2_k: 16 of 4 bits,
                             // the minimums in the high nibbles
  std::uint8_t minimums[8];  // q4_k, q5_k: 8 of 6 bits
};

// Takes a stored block apart (gemm/file_blocks.cpp).
void unpack_file_block(DType dtype, const std::byte* file_block, QuantBlock& block);

// Bytes of one block of a packed group of a quantised format: 8 rows x block_size columns.
std::int64_t packed_block_bytes(DType dtype);

// Bytes of a packed group of `cols` columns.
std::int64_t packed_group_bytes(DType dtype, std::int64_t cols);

// Writes `block` as row `lane` of a packed block, and reads it back.
void write_packed_block(DType dtype, const QuantBlock& block, int lane, std::byte* packed);
void read_packed_block(DType dtype, const std::byte* packed, int lane, QuantBlock& block);

// The block_size values of a block, as f32.
void dequantize_block(DType dtype, const QuantBlock& block, float* out);

}  // namespace minisgl
