// Mask: the only tokens that may be drawn, one bit each.
#include <algorithm>
#include <limits>

#include "kernels/cpu/processors.h"

namespace minisgl {

void apply_mask(std::span<float> logits, TokenMask mask) {
  if (mask.empty()) return;
  MINISGL_CHECK(std::ssize(mask) == mask_words(std::ssize(logits)), "a mask of ", mask.size(),
                " words for a vocabulary of ", logits.size());
  for (std::size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == ~std::uint32_t{0}) continue;
    const auto part = logits.subspan(word * 32, std::min<std::size_t>(32, logits.size() - word * 32));
    for (std::size_t i = 0; i < part.size(); ++i) {
      if ((mask[word] >> i & 1) == 0) part[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace minisgl
