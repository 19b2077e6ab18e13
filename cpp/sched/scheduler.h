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
// A step is in flight from plan() to complete(). Up to kMostInFlight may be: the second is planned as if the first were
// done, with a token that isn't known yet in place of each that the first draws. Nobody is preempted while a step is in
// flight. What the device may still write to belongs to its sequence until the steps that write it are complete, also
// if the sequence is removed before.
class Scheduler {
 public:
  static constexpr std::size_t kMostInFlight = 2;

  explicit Scheduler(const SchedulerOptions& options);

  // To the tail of the queue. CheckError for an empty prompt, an id in use, or what would not fit the cache alone.
  void add(NewSequence sequence);
  // Ends a live sequence, finished or aborted, wherever it is; it is planned no more. Its pages are released at once,
  // or with the completion of the last step in flight that computes it. CheckError for an unknown id.
  void remove(SequenceId id);

  // The next step, in flight from now on. Empty (and not in flight) when there is nothing to do, or nothing before the
  // steps in flight are complete.
  const StepPlan& plan();
  // The oldest step in flight. CheckError if there is none.
  const StepPlan& oldest() const;
  // The oldest step in flight ran: `sampled` has the new token of each sequence that samples, in the plan's order. A
  // sequence that reached its max_tokens (or has nothing to generate) must then be removed. The plan stays valid until
  // the next plan().
  void complete(std::span<const std::int32_t> sampled);

  bool has_work() const { return !index_.empty(); }
  std::size_t num_in_flight() const { return in_flight_.size(); }
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
  struct Step {
    StepPlan plan;
    std::vector<Place> places;             // [plan.sequences]
    std::vector<std::int64_t> new_tokens;  // [plan.sequences] index of the token drawn for it, where it samples
  };
  struct Entry {
    State state;
    Place place;
  };

  std::int64_t pages_for(std::int64_t num_tokens) const;
  bool plan_decodes();  // whether it preempted
  bool must_preempt() const;
  void plan_prefills();
  void admit();
  bool grow(Sequence& sequence);  // false when the sequence itself was preempted
  void preempt_latest();
  void plan_rows(Place place);
  std::int64_t chunk_size(const Sequence& sequence) const;

  SchedulerOptions options_;
  PageAllocator pages_;
  std::list<Sequence> running_;
  std::list<Sequence> waiting_;
  std::list<Sequence> leaving_;  // removed, but a step in flight computes them
  std::unordered_map<SequenceId, Entry> index_;
  std::uint64_t num_preemptions_ = 0;

  std::list<Step> in_flight_;            // oldest first
  std::list<Step> spare_;                // keep their memory; the first is the one planned now
  std::int64_t rows_left_ = 0;           // of max_batch_tokens, while planning
  std::int64_t prompt_logits_left_ = 0;  // of max_prompt_logits, while planning
};

}  // namespace minisgl
