// What the host says of the next tokens of a sequence: by its grammar, or since its thought has a budget.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/grammars.h"
#include "engine/live_sequences.h"
#include "engine/thought.h"

namespace minisgl {

// The engine thread's. Where no sequence has either, its calls cost nothing.
class Guidance {
 public:
  // All of them outlive it. `may_await_masks`: a step may begin before the masks of its draws are made.
  Guidance(Grammars& grammars, LiveSequences& sequences, Scheduler& scheduler, std::int64_t vocab_size,
           bool may_await_masks)
      : grammars_(grammars),
        sequences_(sequences),
        scheduler_(scheduler),
        vocab_size_(vocab_size),
        may_await_masks_(may_await_masks) {}

  // Whether the request's sequence comes by way of admit().
  static bool concerns(const Request& request);
  // The sequence enters: at once, or with a grammar when that was read and the first mask is there. Takes grammar and
  // budget out of the request, whose prompt and sampling parameters are the newcomer's.
  void admit(Request& request, Newcomer newcomer);
  // These live sequences have new tokens, all known.
  void note(const StepPlan& plan, const StepTokens& drawn);
  // The sequence has ended, by another's doing.
  void end(SequenceId id);

  // Whether grammars are at work, whose results take() applies.
  bool has_grammars() const { return !grammars_.empty(); }
  // Until the masks that a step waits for are there, at most until that time.
  void wait(Clock::time_point until) { grammars_.wait(until); }
  // Returns whether something came.
  bool take();

 private:
  struct LimitedThought {
    Thought thought;
    bool needs_token;       // the sequence does, for another reason
    bool has_mask = false;  // the thought's closing is its mask
  };

  void note_thoughts(const StepPlan& plan, const StepTokens& drawn);
  void lead_thought(SequenceId id);
  void advance_grammars(const StepPlan& plan, const StepTokens& drawn);
  void apply(GrammarResult result);
  void add_closing(SequenceId id, std::vector<std::uint32_t>& mask);

  Grammars& grammars_;
  LiveSequences& sequences_;
  Scheduler& scheduler_;
  const std::int64_t vocab_size_;
  const bool may_await_masks_;
  std::unordered_map<SequenceId, LimitedThought> thoughts_;  // those that aren't over
  std::vector<GrammarResult> results_;                       // of take(), kept for their memory
  std::vector<Grammars::Advance> advances_;                  // of advance_grammars(), likewise
};

}  // namespace minisgl
