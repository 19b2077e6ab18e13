// What comes of a step's draws: a list of tokens per sequence.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sched/step_plan.h"

namespace minisgl {

// The new tokens of a plan's sequences. A sequence that draws none, or whose draw was withdrawn, has an empty list; any
// other has its accepted drafts and one token after them.
struct StepTokens {
  std::vector<std::int32_t> tokens;  // list after list
  std::vector<std::int32_t> ends;    // [plan.sequences] where in `tokens` each list ends

  std::span<const std::int32_t> of(std::size_t sequence) const {
    const std::int32_t begin = sequence == 0 ? 0 : ends[sequence - 1];
    return std::span(tokens).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(ends[sequence] - begin));
  }
  std::int32_t num_accepted(std::size_t sequence) const {
    return of(sequence).empty() ? 0 : static_cast<std::int32_t>(of(sequence).size()) - 1;
  }
};

// Decides which drafts hold. `drawn` has the token of each draw, in the plan's order. A draft is accepted while it
// equals the token drawn at its place, so the lists are what draws one by one would have given. CheckError unless there
// is one token per draw. `result` is overwritten and keeps its memory.
void accept_drafts(const StepPlan& plan, std::span<const std::int32_t> drawn, StepTokens& result);

}  // namespace minisgl
