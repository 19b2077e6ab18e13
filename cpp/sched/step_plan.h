// One step, said completely: what a rank computes, given the sequences that it was told of. Plain integers, so that a
// plan can travel to other ranks. The scheduler writes it, the executor reads it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cache/tier_copies.h"
#include "sched/sequence.h"

namespace minisgl {

// One sequence's part of a step. Rows of a plan stand in the order of `sequences`, each sequence's in order of
// position.
struct SequenceStep {
  SequenceId id;
  std::int32_t first_row;
  std::int32_t num_rows;        // >= 1
  std::int32_t start_position;  // position of the first row
  // The sequence's page table from this step on: the first `num_kept_pages` entries of the table that the rank has,
  // then `num_new_pages` of StepPlan::new_pages from `first_new_page`. A preempted sequence comes back with 0 kept.
  std::int32_t num_kept_pages;
  std::int32_t first_new_page;
  std::int32_t num_new_pages;
  // Tokens drawn, one from the logits of each of the last num_draws rows: 0 in the middle of a prompt, as a rule 1.
  // With k drafts, which are the tokens of the last k rows, k + 1.
  std::int32_t num_draws = 0;
  std::int32_t num_hidden = 0;  // last rows whose hidden states come back; 0 beside draws
  std::int32_t adapter = 0;     // 0: none
  // 1: the mask of its one draw is made while the rows are computed, of a token that the step before draws.
  std::int32_t awaits_mask = 0;
  bool is_withdrawn = false;  // the mask didn't come: there is no draw. Rank 0 alone knows

  std::int32_t first_draw() const { return first_row + num_rows - num_draws; }  // its row
  std::int32_t num_drafts() const { return std::max(0, num_draws - 1); }
};

// What the logits of one row are for.
struct LogitTarget {
  static constexpr std::int32_t kSample = -1;
  std::int32_t sequence;  // index into StepPlan::sequences
  std::int32_t token;     // kSample, or the prompt token that follows and whose log probability is wanted
};

struct StepPlan {
  // [num_rows] A token below 0 is drawn by the step before this one and not known yet: -1 - i stands for what comes of
  // that plan's target i.
  std::vector<std::int32_t> tokens;
  std::vector<SequenceStep> sequences;    // cover all rows
  std::vector<PageId> new_pages;          // see SequenceStep
  std::vector<std::int32_t> logit_rows;   // [num_logits] ascending
  std::vector<LogitTarget> targets;       // [num_logits]
  std::vector<std::int32_t> hidden_rows;  // [sum of num_hidden] ascending
  // Pages of the device whose keys and values in all layers are copied before anything of the step is computed. No page
  // is the destination of two copies, or the source of one and the destination of another.
  std::vector<PagePair> copies;
  // Copies between tiers up to this number (TierCopies) are done on rank 0; a rank has them done before anything of the
  // step is computed. 0: none since the plan before.
  std::uint64_t copies_before = 0;

  bool empty() const { return sequences.empty(); }
  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens.size()); }
  void clear();
};

}  // namespace minisgl
