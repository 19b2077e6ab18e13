// Bans: tokens that must not be drawn, by name.
#include <limits>

#include "kernels/cpu/processors.h"

namespace minisgl {

void apply_bans(std::span<float> logits, std::span<const std::int32_t> banned) {
  for (const std::int32_t token : banned) {
    logits[checked_token(token, logits)] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace minisgl
