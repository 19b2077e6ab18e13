// One step, said completely: what a rank computes, given the sequences that it was told of. Plain integers, so that a
// plan can travel to other ranks. The scheduler writes it, the executor reads it.
#pragma once

#include <cstdint>
#include <vector>

#include "sched/sequence.h"

namespace minisgl {

// The rows of one sequence. Rows of a plan stand in the order of `sequences`, each sequence's in order of position.
struct SequenceStep {
  SequenceId id;
  std::int32_t first_row;
  std::int32_t num_rows;        // >= 1
  std::int32_t start_position;  // of the first row
  // The sequence's page table from this step on: the first `num_kept_pages` entries of the table that the rank has,
  // then `num_new_pages` of StepPlan::new_pages from `first_new_page`. A preempted sequence comes back with 0 kept.
  std::int32_t num_kept_pages;
  std::int32_t first_new_page;
  std::int32_t num_new_pages;
  bool samples;  // its last row's logits become its next token
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
  std::vector<SequenceStep> sequences;   // cover all rows
  std::vector<PageId> new_pages;         // see SequenceStep
  std::vector<std::int32_t> logit_rows;  // [num_logits] ascending
  std::vector<LogitTarget> targets;      // [num_logits]

  bool empty() const { return sequences.empty(); }
  std::int64_t num_rows() const { return static_cast<std::int64_t>(tokens.size()); }
  void clear();
};

}  // namespace minisgl
