// Values of f32, f16 and bf16 as files store them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "core/half.h"

namespace minisgl {

// values[index] of one of the three; files don't promise alignment.
inline float float_at(DType dtype, const std::byte* values, std::int64_t index) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, values + index * 4, sizeof value);
    return value;
  }
  std::uint16_t half;
  std::memcpy(&half, values + index * 2, sizeof half);
  return dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

}  // namespace minisgl
