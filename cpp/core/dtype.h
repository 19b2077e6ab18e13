// Element formats of weights and caches: plain floats and the GGUF block formats.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace minisgl {

enum class DType : std::uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q4_k, q6_k };

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
  }
  return {"?", 1, 0};
}

constexpr bool is_quantized(DType dtype) {
  return dtype_info(dtype).block_size > 1;
}

// Bytes of one row of `cols` elements as stored in a file; `cols` is a multiple of the block size.
constexpr std::int64_t row_bytes(DType dtype, std::int64_t cols) {
  return cols / dtype_info(dtype).block_size * dtype_info(dtype).block_bytes;
}

// "f16" -> DType::f16; nothing for an unknown name.
std::optional<DType> dtype_from_name(std::string_view name);

}  // namespace minisgl
