// Bias: what a request adds to the logits of some tokens.
#include "kernels/cpu/processors.h"

namespace minisgl {

void apply_bias(std::span<float> logits, std::span<const TokenBias> bias) {
  for (const auto& [token, added] : bias) logits[checked_token(token, logits)] += added;
}

}  // namespace minisgl
