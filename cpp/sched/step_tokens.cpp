// Drafts are verified by equality.
#include "sched/step_tokens.h"

#include "core/error.h"

namespace minisgl {

void accept_drafts(const StepPlan& plan, std::span<const std::int32_t> drawn, StepTokens& result) {
  result.tokens.clear();
  result.ends.clear();
  std::size_t next = 0;
  for (const SequenceStep& step : plan.sequences) {
    if (step.num_draws > 0) {
      const auto num_draws = static_cast<std::size_t>(step.num_draws);
      MINISGL_CHECK(num_draws <= drawn.size() - next, "too few drawn tokens");
      const std::int32_t* drafts = plan.tokens.data() + step.first_draw() + 1;
      std::size_t count = 1;
      while (count < num_draws && drafts[count - 1] == drawn[next + count - 1]) ++count;
      result.tokens.insert(result.tokens.end(), drawn.begin() + static_cast<std::ptrdiff_t>(next),
                           drawn.begin() + static_cast<std::ptrdiff_t>(next + count));
      next += num_draws;
    }
    result.ends.push_back(static_cast<std::int32_t>(result.tokens.size()));
  }
  MINISGL_CHECK(next == drawn.size(), "too many drawn tokens");
}

}  // namespace minisgl
