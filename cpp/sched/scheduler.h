// Who computes what in the next step: continuous batching, chunked prefill, pages, preemption. No device code, no
// threads.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/page_allocator.h"
#include "sched/sequence.h"
#include "sched/step_plan.h"

namespace minisgl {

struct SchedulerOptions {
  std::int64_t num_pages = 0;
  int page_size = 16;
  std::int64_t max_running = 256;       // sequences that hold pages
  std::int64_t max_batch_tokens = 512;  // rows of a step
  std::int64_t max_prompt_logits =
      64;  // prompt rows of a step whose logits are wanted: bounds the [rows, vocab] buffer
};

// First come, first served. A step takes the decoding sequences first, then chunks of prefills that were begun, then
// admits from the queue while budget, places and pages last.
//
// Pages: a sequence is admitted when pages for all its present tokens are free, and takes them at once, so a
// prefill never stops halfway for want of pages. Decoding takes page by page. When none is free, the latest to have
// arrived gives up its pages and goes to the head of the queue; its prompt and output are computed again later. The
// earliest is therefore never preempted, and what fits the cache alone always finishes.
//
// plan() and complete() alternate. add() may be called at any time, remove() only between steps, because during one the
// device still writes to the pages.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // To the tail of the queue. CheckError for an empty prompt, a live id, or what would not fit the cache alone.
  void add(NewSequence sequence);
  // Ends a live sequence, finished or aborted, wherever it is, and releases its pages. CheckError for an unknown id.
  void remove(SequenceId id);

  // The next step; empty when there is nothing to do. Valid until the next call.
  const StepPlan& plan();
  // The step ran: `sampled` has the new token of each sequence that samples, in the plan's order. A sequence that
  // reached its max_tokens (or has nothing to generate) must then be removed.
  void complete(std::span<const std::int32_t> sampled);

  bool has_work() const { return !index_.empty(); }
  std::int64_t num_running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t num_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  std::uint64_t num_preemptions() const { return num_preemptions_; }
  const PageAllocator& pages() const { return pages_; }
  const Sequence& sequence(SequenceId id) const;  // CheckError for an unknown id
  // In order of arrival; all of `running` arrived before all of `waiting`.
  const std::list<Sequence>& running() const { return running_; }
  const std::list<Sequence>& waiting() const { return waiting_; }

  // Verifies every invariant, O(pages + sequences). For tests and debug builds; CheckError when one is broken.
  void check() const;

 private:
  using Place = std::list<Sequence>::iterator;
  enum class State : std::uint8_t { waiting, running };
  struct Entry {
    State state;
    Place place;
  };

  std::int64_t pages_for(std::int64_t num_tokens) const;
  bool plan_decodes();  // whether it preempted
  void plan_prefills();
  void admit();
  bool grow(Sequence& sequence);  // false when the sequence itself was preempted
  void preempt_latest();
  void plan_rows(Sequence& sequence);
  std::int64_t chunk_size(const Sequence& sequence) const;

  SchedulerOptions options_;
  PageAllocator pages_;
  std::list<Sequence> running_;
  std::list<Sequence> waiting_;
  std::unordered_map<SequenceId, Entry> index_;
  std::uint64_t num_preemptions_ = 0;

  StepPlan plan_;
  bool in_step_ = false;
  std::int64_t rows_left_ = 0;           // of max_batch_tokens, while planning
  std::int64_t prompt_logits_left_ = 0;  // of max_prompt_logits, while planning
};

}  // namespace minisgl
