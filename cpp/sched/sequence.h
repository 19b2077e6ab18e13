// A request as the scheduler sees it: tokens, a few integers and the pages it holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache/page_allocator.h"

namespace minisgl {

using SequenceId = std::uint64_t;

struct NewSequence {
  SequenceId id = 0;                 // never used before
  std::vector<std::int32_t> prompt;  // at least one token
  std::int64_t max_tokens = 0;       // how many to generate at most
  bool score_prompt = false;         // logits of every prompt row are wanted (prompt logprobs)
};

struct Sequence {
  static constexpr std::int32_t kPending = -1;  // a token that a step in flight will draw

  SequenceId id;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated; the last may be pending
  std::int64_t prompt_len;
  std::int64_t max_len;  // prompt_len + max_tokens
  bool score_prompt;

  // These say how things stand when all steps in flight are done.
  std::int64_t num_computed = 0;       // tokens whose keys and values are in the cache
  std::int64_t num_scored = 0;         // prompt rows whose logits were delivered; survives preemption
  std::vector<PageId> pages = {};      // page of position p is pages[p / page_size]
  std::int64_t num_planned_pages = 0;  // of these, how many a plan has told the ranks
  std::int32_t pending_target = 0;     // of a pending token: the target of the latest plan that draws it
  int num_in_flight = 0;               // steps in flight that compute rows of it

  std::int64_t len() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_uncomputed() const { return len() - num_computed; }
  // Nothing is left to compute: the prompt of a sequence that generates nothing, or all but the last token of another.
  bool complete() const { return len() == max_len && num_computed >= std::max(prompt_len, len() - 1); }
  // Only its latest token waits to be computed. A prompt of one token counts as decode, too.
  bool decoding() const { return num_uncomputed() == 1 && !complete(); }
};

}  // namespace minisgl
