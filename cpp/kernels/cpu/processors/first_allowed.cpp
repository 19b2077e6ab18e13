// What is drawn where no token has a chance.
#include <algorithm>

#include "kernels/cpu/processors.h"

namespace minisgl {

std::int32_t first_allowed(std::size_t vocab_size, const LogitProcessors& processors) {
  std::int32_t masked_in = -1;
  for (std::int32_t token = 0; static_cast<std::size_t>(token) < vocab_size; ++token) {
    if (!mask_allows(processors.mask, token)) continue;
    if (std::ranges::find(processors.banned, token) == processors.banned.end()) return token;
    if (masked_in < 0) masked_in = token;
  }
  return std::max(masked_in, 0);
}

}  // namespace minisgl
