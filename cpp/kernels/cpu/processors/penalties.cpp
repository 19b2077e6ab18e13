// Penalties: tokens that were seen become less likely.
#include "kernels/cpu/processors.h"
#include "kernels/cpu/seen_tokens.h"

namespace minisgl {

void apply_penalties(std::span<float> logits, const Penalties& penalties) {
  const bool repetition = penalties.repetition != 1.0f;
  const bool of_output = penalties.presence != 0.0f || penalties.frequency != 0.0f;
  if (penalties.seen == nullptr || (!repetition && !of_output)) return;
  const TokenCounts& counts = static_cast<const CpuSeenTokens*>(penalties.seen)->counts;
  MINISGL_CHECK(counts.in_output.size() == logits.size(), "output counts missing");
  MINISGL_CHECK(!repetition || counts.in_prompt.size() == logits.size(), "prompt counts missing");
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const std::uint32_t count = counts.in_output[i];
    if (repetition && (count != 0 || counts.in_prompt[i] != 0))
      logits[i] = logits[i] > 0 ? logits[i] / penalties.repetition : logits[i] * penalties.repetition;
    if (count != 0) logits[i] -= penalties.frequency * static_cast<float>(count) + penalties.presence;
  }
}

}  // namespace minisgl
