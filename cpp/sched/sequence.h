// A request as the scheduler sees it: tokens, a few integers and the pages it holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "cache/page_allocator.h"
#include "cache/prefix_tree.h"
#include "sched/fair_queue.h"

namespace minisgl {

using SequenceId = std::uint64_t;

struct NewSequence {
  SequenceId id = 0;                 // never used before
  std::vector<std::int32_t> prompt;  // at least one token
  std::int64_t max_tokens = 0;       // the most to generate
  bool score_prompt = false;         // logits of every prompt row are wanted (prompt logprobs)
  bool needs_token = false;          // planned only while its latest token is known
  bool awaits_masks = false;         // a draw planned before its latest token is known awaits a mask
  bool has_counts = false;           // devices count its tokens while it runs
  std::int64_t num_hidden = 0;       // the prompt's last rows whose hidden states are wanted; nothing is drawn then
  PrefixSpace space = {};            // of those that it may share pages with; its adapter
  Standing standing = {};
  FairQueue::Time arrived = {};
};

struct Sequence {
  static constexpr std::int32_t kPending = -1;  // a token that a step in flight will draw

  explicit Sequence(NewSequence&& added)
      : id(added.id),
        tokens(std::move(added.prompt)),
        prompt_len(len()),
        max_len(prompt_len + added.max_tokens),
        needs_token(added.needs_token),
        awaits_masks(added.awaits_masks),
        wants_hidden(added.num_hidden > 0),
        end_wanted(wants_hidden         ? prompt_len
                   : added.score_prompt ? prompt_len - 1
                                        : 0),
        first_wanted(wants_hidden ? prompt_len - added.num_hidden : 0),
        space(added.space),
        turn(added.id, added.has_counts) {}

  SequenceId id;
  std::vector<std::int32_t> tokens;  // prompt, then what was generated; the last may be pending
  std::int64_t prompt_len;
  std::int64_t max_len;  // prompt_len + max_tokens

  // These say how things stand when all steps in flight are done, as far as that is certain: drafts in flight count as
  // one pending token.
  std::int64_t num_computed = 0;       // tokens whose keys and values are in the cache
  std::vector<PageId> pages = {};      // page of position p is pages[p / page_size]
  std::int64_t num_planned_pages = 0;  // how many of them a plan has told the ranks
  std::int32_t pending_target = 0;     // the target of the latest plan that draws the pending token
  int num_in_flight = 0;               // steps in flight that compute rows of it
  std::int32_t num_uncharged = 0;      // tokens generated since its share was charged

  bool is_running = false;  // else it waits, or has left
  bool needs_token, awaits_masks;
  bool tries_drafts = false;  // in a step in flight: what it computed isn't certain before that is complete
  bool is_held = false;       // not planned until the host lets it go on
  bool wants_hidden;          // the wanted rows give hidden states, else logits
  // The prompt's rows that the host gets something of; none where end_wanted is 0.
  std::int64_t end_wanted, first_wanted;
  std::int64_t num_delivered = 0;         // end of the wanted rows that were planned; survives preemption
  std::vector<std::int32_t> drafts = {};  // proposed to follow the known tokens; the next part that draws tries them
  PrefixSpace space;
  std::int64_t num_tree_pages = 0;  // pages that are the prefix tree's, too: the first ones
  std::int64_t num_brought = 0;     // while it waits: tokens that were brought from the host for it
  std::int64_t num_named = 0;       // tokens that plans had named to the ranks when it was preempted

  Turn turn;
  std::int64_t num_charged = 0;  // of the prompt, to its share; survives preemption
  // How much more than its own share another must have had, in weighted tokens, to give way to it: once preempted, or
  // let in at the cost of others, what it would cost to compute it again.
  std::int64_t toll = 0;

  std::int64_t len() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_uncomputed() const { return len() - num_computed; }
  bool is_pending() const { return tokens.back() == kPending; }
  // Whether it may be in the next step, as far as its tokens and the host are concerned.
  bool is_ready() const { return !is_held && !((needs_token || tries_drafts) && is_pending()); }
  // The first row from num_computed on that the host gets something of.
  std::int64_t next_wanted() const { return std::max({num_computed, num_delivered, first_wanted}); }
  // Nothing is left to compute: the prompt of a sequence that generates nothing, or all but the last token of another.
  bool complete() const { return len() == max_len && num_computed >= std::max(prompt_len, len() - 1); }
  // Only its latest token waits to be computed. A prompt of one token counts as decode, too.
  bool decoding() const { return num_uncomputed() == 1 && !complete(); }
};

}  // namespace minisgl
