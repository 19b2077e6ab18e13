// Weights of e4m3 as the tensor cores' operands.
#pragma once

#include <cstdint>

#include "core/cuda/math.cuh"

namespace minisgl::cuda {

// Four bytes as two pairs of bf16, exact: bytes 0 and 2, and bytes 1 and 3. Sign, exponent and mantissa move to their
// places in a bf16, whose exponent has a bias that is 120 larger. What e4m3 has for NaN becomes 480.
__device__ __forceinline__ void widen_e4m3(std::uint32_t bytes, std::uint32_t& even, std::uint32_t& odd) {
  constexpr std::uint32_t kSigns = 0x80008000u, kRest = 0x07f007f0u, k2To120 = 0x7b807b80u;
  const auto scaled = [](std::uint32_t pair) {
    const std::uint32_t factor = k2To120;
    const __nv_bfloat162 value =
        __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&factor));
    return *reinterpret_cast<const std::uint32_t*>(&value);
  };
  even = scaled((bytes << 8 & kSigns) | (bytes << 4 & kRest));
  odd = scaled((bytes & kSigns) | (bytes >> 4 & kRest));
}

}  // namespace minisgl::cuda
