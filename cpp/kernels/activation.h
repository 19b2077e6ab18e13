// What stands between gate and up in an MLP.
#pragma once

#include <cstdint>

namespace minisgl {

enum class Activation : std::uint8_t {
  silu,
  gelu_tanh,
  // gpt-oss: min(gate, 7) * sigmoid(1.702 * min(gate, 7)) * (clamp(up, -7, 7) + 1)
  clamped_silu,
};

constexpr float kClampedSiluSlope = 1.702f;
constexpr float kClampedSiluLimit = 7.0f;

}  // namespace minisgl
