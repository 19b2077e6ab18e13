// What stands between gate and up in an MLP.
#pragma once

#include <cstdint>

namespace minisgl {

enum class Activation : std::uint8_t { silu, gelu_tanh };

}  // namespace minisgl
