// Integers and scales to packed blocks (gemm/layout.h) and back, and to values. What distinguishes the formats is data:
// one description of each, and code compiled for it.
#include "gemm/block_codec.h"

#include <cstring>

#include "core/half.h"
#include "gemm/layout.h"

namespace minisgl {
namespace {

// How a packed block looks and what its integers mean.
struct Format {
  int low_bits, high_bits = 0;             // of q
  int scale_bytes = 0, minimum_bytes = 0;  // per row and part, behind the bits
  bool has_m = false;
  int zero = 0;                        // the q that stands for 0
  const std::int8_t* table = nullptr;  // the value of each q instead
};

constexpr Format format_of(DType dtype) {
  switch (dtype) {
    case DType::q8_0: return {.low_bits = 8, .zero = 128};
    case DType::q4_0: return {.low_bits = 4, .zero = 8};
    case DType::q4_1: return {.low_bits = 4, .has_m = true};
    case DType::q5_0: return {.low_bits = 4, .high_bits = 1, .zero = 16};
    case DType::q5_1: return {.low_bits = 4, .high_bits = 1, .has_m = true};
    case DType::iq4_nl: return {.low_bits = 4, .table = iq4_values};
    case DType::mxfp4: return {.low_bits = 4, .table = mxfp4_values};
    case DType::q2_k: return {.low_bits = 2, .scale_bytes = 2, .has_m = true};
    case DType::q3_k: return {.low_bits = 2, .high_bits = 1, .scale_bytes = 2, .zero = 4};
    case DType::q4_k: return {.low_bits = 4, .scale_bytes = 1, .minimum_bytes = 1, .has_m = true};
    case DType::q5_k: return {.low_bits = 4, .high_bits = 1, .scale_bytes = 1, .minimum_bytes = 1, .has_m = true};
    case DType::q6_k: return {.low_bits = 4, .high_bits = 2, .scale_bytes = 2, .zero = 32};
    case DType::iq4_xs: return {.low_bits = 4, .scale_bytes = 1, .table = iq4_values};
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::i8:
    case DType::f8e4m3: break;
  }
  return {.low_bits = 0};
}

constexpr int header_bytes(const Format& format) {
  return format.has_m ? 32 : 16;
}
constexpr int part_bytes(const Format& format) {
  return bit_bytes * (format.low_bits + format.high_bits) + group_rows * (format.scale_bytes + format.minimum_bytes);
}
constexpr int num_parts(DType dtype) {
  return static_cast<int>(dtype_info(dtype).block_size) / 32;
}
constexpr int block_bytes(DType dtype) {
  return header_bytes(format_of(dtype)) + num_parts(dtype) * part_bytes(format_of(dtype));
}

static_assert(block_bytes(DType::q8_0) == q8_0_block_bytes);
static_assert(block_bytes(DType::q4_0) == q4_0_block_bytes);
static_assert(block_bytes(DType::q4_1) == q4_1_block_bytes);
static_assert(block_bytes(DType::q5_0) == q5_0_block_bytes);
static_assert(block_bytes(DType::q5_1) == q5_1_block_bytes);
static_assert(block_bytes(DType::iq4_nl) == iq4_nl_block_bytes);
static_assert(block_bytes(DType::mxfp4) == mxfp4_block_bytes);
static_assert(block_bytes(DType::q2_k) == q2_k_block_bytes);
static_assert(block_bytes(DType::q3_k) == q3_k_block_bytes);
static_assert(block_bytes(DType::q4_k) == q4_k_block_bytes);
static_assert(block_bytes(DType::q5_k) == q5_k_block_bytes);
static_assert(block_bytes(DType::q6_k) == q6_k_block_bytes);
static_assert(block_bytes(DType::iq4_xs) == iq4_xs_block_bytes);

// Calls function.operator()<dtype>(); nothing for formats that have no blocks.
template <typename Function>
void with_format(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::q8_0: return function.template operator()<DType::q8_0>();
    case DType::q4_0: return function.template operator()<DType::q4_0>();
    case DType::q4_1: return function.template operator()<DType::q4_1>();
    case DType::q5_0: return function.template operator()<DType::q5_0>();
    case DType::q5_1: return function.template operator()<DType::q5_1>();
    case DType::iq4_nl: return function.template operator()<DType::iq4_nl>();
    case DType::mxfp4: return function.template operator()<DType::mxfp4>();
    case DType::q2_k: return function.template operator()<DType::q2_k>();
    case DType::q3_k: return function.template operator()<DType::q3_k>();
    case DType::q4_k: return function.template operator()<DType::q4_k>();
    case DType::q5_k: return function.template operator()<DType::q5_k>();
    case DType::q6_k: return function.template operator()<DType::q6_k>();
    case DType::iq4_xs: return function.template operator()<DType::iq4_xs>();
    case DType::f32:
    case DType::f16:
    case DType::bf16:
    case DType::i8:
    case DType::f8e4m3: break;
  }
}

// The quad in field `slot` of quad vector `vector`, for fields of `bits` bits.
template <int bits>
constexpr int quad_of(int vector, int slot) {
  return bits == 4 ? vector + 4 * slot : vector * (8 / bits) + slot;
}

// Writes bits [from, from + bits) of 32 elements: `bits` quad vectors.
template <int bits, int from>
void write_bits(const std::uint8_t* q, int lane, std::byte* packed) {
  for (int vector = 0; vector < bits; ++vector) {
    for (int i = 0; i < 4; ++i) {
      int byte = 0;
      for (int slot = 0; slot < 8 / bits; ++slot)
        byte |= (q[4 * quad_of<bits>(vector, slot) + i] >> from & ((1 << bits) - 1)) << (bits * slot);
      packed[32 * vector + 4 * lane + i] = static_cast<std::byte>(byte);
    }
  }
}

// Ors them into q.
template <int bits, int from>
void read_bits(const std::byte* packed, int lane, std::uint8_t* q) {
  for (int vector = 0; vector < bits; ++vector) {
    for (int i = 0; i < 4; ++i) {
      const int byte = static_cast<std::uint8_t>(packed[32 * vector + 4 * lane + i]);
      for (int slot = 0; slot < 8 / bits; ++slot) {
        std::uint8_t& value = q[4 * quad_of<bits>(vector, slot) + i];
        value = static_cast<std::uint8_t>(value | (byte >> (bits * slot) & ((1 << bits) - 1)) << from);
      }
    }
  }
}

// Where the parts of a packed block begin, and its scales: before the parts of several, behind the only one.
template <DType dtype>
constexpr int first_part = num_parts(dtype) > 1 ? header_bytes(format_of(dtype)) : 0;
template <DType dtype>
constexpr int header_at = num_parts(dtype) > 1 ? 0 : part_bytes(format_of(dtype));

template <DType dtype>
void write_block(const QuantBlock& block, int lane, std::byte* packed) {
  constexpr Format format = format_of(dtype);
  std::memcpy(packed + header_at<dtype> + 2 * lane, &block.d, 2);
  if constexpr (format.has_m) std::memcpy(packed + header_at<dtype> + 16 + 2 * lane, &block.m, 2);
  std::byte* p = packed + first_part<dtype>;
  for (int part = 0; part < num_parts(dtype); ++part, p += part_bytes(format)) {
    const std::uint8_t* q = block.q + 32 * part;
    write_bits<format.low_bits, 0>(q, lane, p);
    if constexpr (format.high_bits > 0)
      write_bits<format.high_bits, format.low_bits>(q, lane, p + bit_bytes * format.low_bits);
    std::byte* scales = p + bit_bytes * (format.low_bits + format.high_bits);
    std::memcpy(scales + format.scale_bytes * lane, block.scales + format.scale_bytes * part, format.scale_bytes);
    if constexpr (format.minimum_bytes > 0)
      scales[group_rows * format.scale_bytes + lane] = static_cast<std::byte>(block.minimums[part]);
  }
}

template <DType dtype>
void read_block(const std::byte* packed, int lane, QuantBlock& block) {
  constexpr Format format = format_of(dtype);
  std::memset(block.q, 0, sizeof(block.q) / 8 * static_cast<std::size_t>(num_parts(dtype)));
  std::memcpy(&block.d, packed + header_at<dtype> + 2 * lane, 2);
  if constexpr (format.has_m) std::memcpy(&block.m, packed + header_at<dtype> + 16 + 2 * lane, 2);
  const std::byte* p = packed + first_part<dtype>;
  for (int part = 0; part < num_parts(dtype); ++part, p += part_bytes(format)) {
    std::uint8_t* q = block.q + 32 * part;
    read_bits<format.low_bits, 0>(p, lane, q);
    if constexpr (format.high_bits > 0)
      read_bits<format.high_bits, format.low_bits>(p + bit_bytes * format.low_bits, lane, q);
    const std::byte* scales = p + bit_bytes * (format.low_bits + format.high_bits);
    std::memcpy(block.scales + format.scale_bytes * part, scales + format.scale_bytes * lane, format.scale_bytes);
    if constexpr (format.minimum_bytes > 0)
      block.minimums[part] = static_cast<std::uint8_t>(scales[group_rows * format.scale_bytes + lane]);
  }
}

// The scale and the minimum of a run, in units of d and m.
template <DType dtype>
float run_scale(const QuantBlock& block, int run) {
  const std::uint8_t byte = block.scales[run];
  switch (dtype) {
    case DType::q2_k: return static_cast<float>(byte & 0x0f);
    case DType::q4_k:
    case DType::q5_k: return static_cast<float>(byte);
    default: return static_cast<float>(static_cast<std::int8_t>(byte));
  }
}
template <DType dtype>
float run_minimum(const QuantBlock& block, int run) {
  return static_cast<float>(dtype == DType::q2_k ? block.scales[run] >> 4 : block.minimums[run]);
}

template <DType dtype>
void dequantize(const QuantBlock& block, float* out) {
  constexpr Format format = format_of(dtype);
  const float d = dtype == DType::mxfp4 ? bf16_to_f32(block.d) : f16_to_f32(block.d);
  const std::int8_t* table = format.table;
  for (int i = 0; i < 32 * num_parts(dtype); ++i) {
    const int q = block.q[i];
    const auto value = static_cast<float>(table ? table[q] : q - format.zero);
    if constexpr (format.scale_bytes == 0) {
      out[i] = d * value;
      if constexpr (format.has_m) out[i] += f16_to_f32(block.m);
    } else {
      const int run = i / (32 / format.scale_bytes);
      out[i] = d * run_scale<dtype>(block, run) * value;
      if constexpr (format.has_m) out[i] -= f16_to_f32(block.m) * run_minimum<dtype>(block, run);
    }
  }
}

}  // namespace

std::int64_t packed_block_bytes(DType dtype) {
  return block_bytes(dtype);
}

std::int64_t packed_group_bytes(DType dtype, std::int64_t cols) {
  if (dtype == DType::bf16) return (cols + 1) / 2 * bf16_group_pair_bytes;
  if (is_quantized(dtype)) return cols / dtype_info(dtype).block_size * packed_block_bytes(dtype);
  return group_rows * row_bytes(dtype, cols);
}

void write_packed_block(DType dtype, const QuantBlock& block, int lane, std::byte* packed) {
  with_format(dtype, [&]<DType format> { write_block<format>(block, lane, packed); });
}

void read_packed_block(DType dtype, const std::byte* packed, int lane, QuantBlock& block) {
  with_format(dtype, [&]<DType format> { read_block<format>(packed, lane, block); });
}

void dequantize_block(DType dtype, const QuantBlock& block, float* out) {
  with_format(dtype, [&]<DType format> { dequantize<format>(block, out); });
}

}  // namespace minisgl
