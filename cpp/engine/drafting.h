// Sequences of which tokens are known, or guessed, before they are drawn: those that have a Lookahead.
#pragma once

#include <memory>
#include <unordered_map>
#include <utility>

#include "engine/live_sequences.h"
#include "engine/lookahead.h"

namespace minisgl {

// The engine thread's. Where no sequence has a lookahead, its calls cost nothing.
class Drafting {
 public:
  // Both outlive it. `make_lookahead` may be empty.
  Drafting(MakeLookahead make_lookahead, LiveSequences& sequences, Scheduler& scheduler)
      : make_lookahead_(std::move(make_lookahead)), sequences_(sequences), scheduler_(scheduler) {}

  // Whether the sequence has a lookahead: it needs its tokens then.
  bool add(SequenceId id, const Request& request);
  // These live sequences have new tokens, all known: appends those that are sure to come, and proposes drafts.
  void note(const StepPlan& plan);
  // The sequence has ended, by another's doing.
  void end(SequenceId id) {
    if (!looking_.empty()) looking_.erase(id);
  }

 private:
  struct Looking {
    std::unique_ptr<Lookahead> lookahead;
    bool may_draft;
  };

  void look(SequenceId id);

  const MakeLookahead make_lookahead_;
  LiveSequences& sequences_;
  Scheduler& scheduler_;
  std::unordered_map<SequenceId, Looking> looking_;
};

}  // namespace minisgl
