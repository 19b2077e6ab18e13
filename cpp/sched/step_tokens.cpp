// Drafts are verified by equality.
#include "sched/step_tokens.h"

#include "core/error.h"

namespace minisgl {

void accept_drafts(const StepPlan& plan, std::span<const std::int32_t> drawn, StepTokens& result) {
  result.tokens.resize(drawn.size());
  result.ends.resize(plan.sequences.size());
  std::int32_t* tokens = result.tokens.data();
  std::int32_t end = 0;
  std::size_t next = 0;
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& step = plan.sequences[i];
    const auto num_draws = static_cast<std::size_t>(step.num_draws);
    MINISGL_CHECK(num_draws <= drawn.size() - next, "too few drawn tokens");
    if (num_draws > 0 && !step.is_withdrawn) {
      const std::int32_t* draws = drawn.data() + next;
      const std::int32_t* drafts = plan.tokens.data() + step.first_draw() + 1;
      tokens[end++] = draws[0];
      for (std::size_t k = 1; k < num_draws && drafts[k - 1] == draws[k - 1]; ++k) tokens[end++] = draws[k];
    }
    next += num_draws;
    result.ends[i] = end;
  }
  MINISGL_CHECK(next == drawn.size(), "too many drawn tokens");
  result.tokens.resize(static_cast<std::size_t>(end));
}

}  // namespace minisgl
