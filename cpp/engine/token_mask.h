// Masks that the engine makes itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/processors.h"

namespace minisgl {

// In a mask of mask_words() words.
inline void allow_tokens(std::span<std::uint32_t> mask, std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    mask[static_cast<std::size_t>(token) / 32] |= 1u << (static_cast<unsigned>(token) % 32);
  }
}

inline std::vector<std::uint32_t> mask_of(std::span<const std::int32_t> tokens, std::int64_t vocab_size) {
  std::vector<std::uint32_t> mask(static_cast<std::size_t>(mask_words(vocab_size)));
  allow_tokens(mask, tokens);
  return mask;
}

}  // namespace minisgl
