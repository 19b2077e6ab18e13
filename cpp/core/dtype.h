// Element formats: plain floats of weights and caches, the GGUF block formats of weights, the scaled bytes of caches.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace minisgl {

enum class DType : std::uint8_t {
  f32,
  f16,
  bf16,
  q8_0,
  q4_0,
  q4_1,
  q4_k,
  q6_k,
  q5_0,
  q5_1,
  q5_k,
  q2_k,
  q3_k,
  iq4_nl,
  iq4_xs,
  mxfp4,
  // Groups of int4 checkpoints on their way to a device, no formats of a file or of the CPU's kernels: f16 scale, f16
  // zero, then two elements to a byte.
  int4_64,
  int4_128,
  i8,      // this and the next are for KV caches alone: bytes with scales beside them (ops::KvLayer)
  f8e4m3,  // 4 bits of exponent, 3 of mantissa, no infinity
};

// Every format of a file's weights, in the order of the enumeration: all_dtypes[i] is DType(i).
constexpr DType all_dtypes[] = {
    DType::f32,  DType::f16,  DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1,   DType::q4_k,   DType::q6_k,
    DType::q5_0, DType::q5_1, DType::q5_k, DType::q2_k, DType::q3_k, DType::iq4_nl, DType::iq4_xs, DType::mxfp4,
};

// Every format of a KV cache.
constexpr DType kv_dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::f8e4m3};

struct DTypeInfo {
  std::string_view name;
  std::int64_t block_size;   // elements that share one block along the last dimension
  std::int64_t block_bytes;  // bytes of one block as stored in a file
};

constexpr DTypeInfo dtype_info(DType dtype) {
  switch (dtype) {
    case DType::f32: return {"f32", 1, 4};
    case DType::f16: return {"f16", 1, 2};
    case DType::bf16: return {"bf16", 1, 2};
    case DType::q8_0: return {"q8_0", 32, 34};
    case DType::q4_0: return {"q4_0", 32, 18};
    case DType::q4_1: return {"q4_1", 32, 20};
    case DType::q4_k: return {"q4_k", 256, 144};
    case DType::q6_k: return {"q6_k", 256, 210};
    case DType::q5_0: return {"q5_0", 32, 22};
    case DType::q5_1: return {"q5_1", 32, 24};
    case DType::q5_k: return {"q5_k", 256, 176};
    case DType::q2_k: return {"q2_k", 256, 84};
    case DType::q3_k: return {"q3_k", 256, 110};
    case DType::iq4_nl: return {"iq4_nl", 32, 18};
    case DType::iq4_xs: return {"iq4_xs", 256, 136};
    case DType::mxfp4: return {"mxfp4", 32, 17};
    case DType::int4_64: return {"int4_64", 64, 36};
    case DType::int4_128: return {"int4_128", 128, 68};
    case DType::i8: return {"int8", 1, 1};
    case DType::f8e4m3: return {"fp8", 1, 1};
  }
  return {"?", 1, 0};
}

// Anything but plain floats.
constexpr bool is_quantized(DType dtype) {
  return dtype > DType::bf16;
}

// The largest magnitude that a byte of a scaled cache holds: what the largest one of a token's head is scaled to. 0 for
// the formats without scales.
constexpr float kv_byte_max(DType dtype) {
  return dtype == DType::i8 ? 127.0f : dtype == DType::f8e4m3 ? 448.0f : 0.0f;
}

constexpr bool has_kv_scales(DType dtype) {
  return kv_byte_max(dtype) > 0;
}

// Bytes of one row of `cols` elements as stored in a file; `cols` is a multiple of the block size.
constexpr std::int64_t row_bytes(DType dtype, std::int64_t cols) {
  return cols / dtype_info(dtype).block_size * dtype_info(dtype).block_bytes;
}

// The cache's format of that name: "f16" -> DType::f16; nothing for another name.
std::optional<DType> kv_dtype_from_name(std::string_view name);

}  // namespace minisgl
