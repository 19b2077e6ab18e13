// Who computes what in the next step: continuous batching, chunked prefill, pages, preemption. No device code, no
// threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/host_tier.h"
#include "cache/page_allocator.h"
#include "cache/prefix_tree.h"
#include "sched/sequence.h"
#include "sched/step_cost.h"
#include "sched/step_plan.h"
#include "sched/step_tokens.h"

namespace minisgl {

struct SchedulerOptions {
  std::int64_t num_pages = 0;
  int page_size = 16;
  std::int64_t max_running = 256;       // sequences that hold pages
  std::int64_t max_counting = 256;      // of those, whose tokens devices count
  std::int64_t max_batch_tokens = 512;  // rows of a step
  // Prompt rows of a step whose logits are wanted: bounds the [rows, vocab] buffer.
  std::int64_t max_prompt_logits = 64;
  std::int64_t max_prompt_hidden = 512;  // prompt rows of a step whose hidden states are wanted
  std::int64_t max_drafts = 0;           // rows of a step that try drafts
  std::int64_t max_adapters = 0;         // different ones of running sequences; 0: any number
  bool prefix_cache = true;  // what was computed is kept as long as there is room, and found again by its tokens
  // How long a step may take in which sequences decode: prefills beside them are cut to what fits. 0: as long as it
  // takes.
  double target_step_seconds = 0;
  std::int64_t host_pages = 0;  // of the host tier; 0: there is none
};

// Tokens since the scheduler was made. A sequence counts once, when it is admitted first.
struct PrefixCounts {
  std::uint64_t queries = 0;  // looked for
  std::uint64_t hits = 0;     // of those, found on the device
  // Of the others: looked for in the host tier, and found there.
  std::uint64_t host_queries = 0, host_hits = 0;
};

// A step takes the decoding sequences first, then chunks of prefills that were begun and newcomers from the queue, in
// the order of FairQueue, while budget, places and pages last; a newcomer that finds no room holds up those behind it.
// A sequence that needs its token is passed over while a step in flight draws it, one that the host holds until it is
// let go on; both keep their places in the order.
//
// Those whose tokens devices count wait at their places until a device has room for it, and hold up nobody else.
//
// No more adapters than max_adapters are those of running sequences. A newcomer with another one waits until one of
// them has none left that runs, and those behind it with it, so that it has its turn.
//
// Pages: a sequence is admitted when pages for all its present tokens are free, and takes them at once, so a
// prefill never stops halfway because pages are missing. Decoding takes page by page. When there are too few, sequences
// give up theirs and wait again; their prompts and outputs are computed again later. The lowest class goes first, in it
// the share that has the most pages, of that the user that has, of that the latest. The earliest of the highest class
// is never preempted, and waiting raises a class, so what fits the cache alone always finishes. Where the next in the
// queue finds no room and others have more than their part (displaces()), they give way to it.
//
// Drafts take only rows, pages and room that nobody else of the step needs; no sequence is preempted for them. A part
// with drafts reserves pages for the case that all hold. When its tokens are known, the places of those that didn't are
// given back: the next part begins at the first token that isn't computed, and keeps fewer pages.
//
// Full pages of a prompt are in the prefix tree from the plan on that computes the last of their tokens; those of what
// was generated when the sequence gives up its pages. A newcomer is given the pages that it begins with, also those
// that the same step computes, if it has more than one row in it, and a copy of the page that follows where half of it
// or more is the same. Nobody writes to a shared page: everybody goes on behind it. Where a running sequence is about
// to compute the newcomer's next page, the newcomer waits for it. Pages that the tree alone owns are as good as free:
// they are given up before anybody is preempted.
//
// With a host tier, pages that would be given up next are copied there, as many as the longest prompt needs. A newcomer
// whose next pages are there waits in its place until they are on the device, where computing them would take longer.
// What copies hold comes back soon, so nobody is preempted while some are under way.
//
// A step is in flight from plan() to complete(). Up to kMostInFlight may be: the second is planned as if the first were
// done, with a token that isn't known yet in place of each that the first draws. Nobody is preempted while a step is in
// flight. What the device may still write to belongs to its sequence until the steps that write it are complete, also
// if the sequence is removed before.
class Scheduler {
 public:
  static constexpr std::size_t kMostInFlight = 2;
  // So many run where a newcomer's step is worth it though nobody else waits.
  static constexpr std::size_t kCrowd = 8;
  // Between two steps that newcomers have alone: weights are read once more for each.
  static constexpr std::uint64_t kPlansBetweenNewcomers = 4;
  static constexpr std::chrono::milliseconds kTimeBetweenNewcomers{250};

  explicit Scheduler(const SchedulerOptions& options);
  Scheduler(const Scheduler&) = delete;

  // Puts a sequence at the tail of the queue. CheckError for an empty prompt, an id in use, or what would not fit the
  // cache alone.
  void add(NewSequence sequence);
  // Ends a live sequence, finished or aborted, wherever it is; it is planned no more. Its pages are released at once,
  // or with the completion of the last step in flight that computes it. CheckError for an unknown id.
  void remove(SequenceId id);

  // The next step, planned at `now`, in flight from then on. Empty (and not in flight) when there is nothing to do, or
  // nothing before the steps in flight are complete.
  const StepPlan& plan(FairQueue::Time now = {});
  // Copies between the tiers that ranks begin behind the latest plan(), valid until copies_done() names them. While
  // steps of before the latest plan() are in flight, they touch nothing that these do.
  std::span<const TierCopies* const> tier_copies() const { return tier_copies_; }
  // The copies up to this number are done on this rank.
  void copies_done(std::uint64_t number);
  // So many of the host tier's pages can be used.
  void host_pages_ready(std::int64_t count);
  // How long one takes from there to the device.
  void set_host_page_seconds(double seconds) { host_page_seconds_ = seconds; }
  // Those that the latest plan() preempted.
  std::span<const SequenceId> preempted() const { return preempted_; }
  // The oldest step in flight. CheckError if there is none.
  const StepPlan& oldest() const;
  // The oldest step in flight ran and brought these tokens. A sequence that reached its max_tokens (or has nothing to
  // generate) must then be removed. `seconds`: how long the step took, 0 where that isn't known. The plan stays valid
  // until the next plan().
  void complete(const StepTokens& drawn, double seconds = 0);

  // Appends tokens that nobody draws: the sequence's next part computes them all and draws what follows. Drafts that
  // were proposed are dropped. CheckError for an unknown id, past max_tokens, and while the latest token isn't known.
  void append(SequenceId id, std::span<const std::int32_t> tokens);
  // Tokens that may follow the known ones; the next part that draws tries the first of them, as many as there is room
  // for. CheckError for an unknown id, while its latest token isn't known, and unless the sequence needs its token or
  // no step is in flight; then the part that tries them is complete before the next is planned.
  void propose(SequenceId id, std::span<const std::int32_t> drafts);

  // Whether the sequence is planned only while its latest token is known, from now on. CheckError for an unknown id,
  // and for one that is held.
  void need_token(SequenceId id, bool is_needed);

  // Plans the sequence no more until it is let go on: the host isn't ready for its next token. CheckError for an
  // unknown id, and unless the sequence needs its token or awaits masks.
  void hold(SequenceId id, bool is_held);
  // Takes back the draw of the latest step that awaits a mask for the sequence, if there is one: append() follows, so
  // what it would have drawn is known. CheckError for an unknown id, and where the draw awaits nothing.
  void withdraw(SequenceId id);
  // Of the draws of the latest step that await masks, takes back those of sequences that are held: their last known
  // token is computed again when they go on. Names these and those that were taken back before. Before the next plan().
  // CheckError without a step.
  std::span<const SequenceId> withdraw_held();

  bool has_work() const { return !index_.empty(); }
  // Whether plan() may find something to do: a step or, with a host tier, copies.
  bool may_plan() const { return host_ || num_held_ > 0 ? has_changed_ : has_work(); }
  const std::optional<HostTier>& host() const { return host_; }
  std::size_t num_in_flight() const { return in_flight_.size(); }
  std::int64_t num_running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t num_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  std::uint64_t num_preemptions() const { return num_preemptions_; }
  const PageAllocator& pages() const { return pages_; }
  std::int64_t num_available_pages() const { return tree_.num_available(); }  // free, or the prefix tree's alone
  const PrefixTree& tree() const { return tree_; }
  // Before anything is added: `events`, which outlives the scheduler, hears what the prefix cache has, on the device in
  // this medium.
  void report_blocks(BlockEvents& events, std::string medium) {
    tree_.report_to(events, std::move(medium));
    if (host_) host_->report_to(events, "CPU");
  }
  const PrefixCounts& prefix_counts() const { return prefix_counts_; }
  const Sequence& sequence(SequenceId id) const { return live(id); }  // CheckError for an unknown id
  const FairQueue& queue() const { return queue_; }
  // In order of class and arrival.
  const std::list<Sequence>& running() const { return running_; }
  // In no order: see queue().
  const std::list<Sequence>& waiting() const { return waiting_; }

  // Verifies every invariant, O(pages + sequences). For tests and debug builds; CheckError when one is broken.
  void check() const;

 private:
  using Iterator = std::list<Sequence>::iterator;
  struct Step {
    StepPlan plan;
    std::vector<Iterator> sequences;       // [plan.sequences]
    std::vector<std::int64_t> new_tokens;  // [plan.sequences] index of the first token drawn for it
    // Pages that the step itself owns: sources of its copies with their paths, destinations, and those that it computes
    // although the prefix tree has equal ones.
    std::vector<PageId> held;
    StepShape shape;  // where steps have a target
    void clear();
  };

  std::int64_t pages_for(std::int64_t num_tokens) const {
    return (num_tokens + options_.page_size - 1) / options_.page_size;
  }
  std::int64_t num_missing_pages(const Sequence& sequence) const;
  std::int64_t num_missing_pages();
  template <typename Each>
  void for_each_decode(const Each& each);
  Sequence& live(SequenceId id) const;
  bool plan_newcomer();
  void plan_everybody();
  void plan_decodes();
  void plan_prefills(bool may_admit);
  bool admit(Iterator next);
  std::int64_t most_shared(const Sequence& sequence) const;
  void take_prefix(Sequence& sequence, std::int64_t most);
  PrefixTree::Begun find_begun(const Sequence& sequence, std::int64_t most) const;
  bool joins(const Sequence& sequence) const;
  bool is_being_computed(const Sequence& sequence, std::int64_t most) const;
  bool waits_for_host(Sequence& sequence, std::int64_t most);
  bool is_worth_bringing(const Sequence& sequence, std::int64_t num_pages) const;
  void count_prefix(Sequence& sequence);
  void plan_tier_copies(StepPlan& plan);
  bool copies_hold_pages() const { return host_ && host_->is_busy(); }
  // Whether so many tokens of a page are copied rather than computed: a GPU makes a copy per layer of a page.
  bool is_worth_copying(std::int64_t num_tokens) const {
    return num_tokens > 0 && 2 * num_tokens >= options_.page_size;
  }
  void pass_over(Sequence& sequence);
  void copy_begun(Sequence& sequence, const PrefixTree::Begun& begun);
  void remember_prompt(Sequence& sequence);
  void release(Sequence& sequence);
  void grow(Sequence& sequence);
  Iterator place_in_order(const Sequence& sequence);
  static void charge_prompt(Sequence& sequence, std::int64_t start);
  static void charge_generated(Sequence& sequence);
  void charge_running();
  bool may_count() const { return queue_.num_counting() < options_.max_counting; }
  bool has_place_for(const Sequence& sequence) const {
    return num_running() < options_.max_running && (!sequence.turn.has_counts || may_count());
  }
  bool make_room();
  bool relieve();
  bool displaces(const Sequence& next, const Sequence& other) const;
  std::int64_t num_spare_pages() const;
  bool has_adapter_for(const Sequence& sequence) const;
  void note_end(const Sequence& sequence);  // it runs no more
  bool has_pages_for(const Sequence& sequence) const;
  Iterator find_displaced(Sequence& next);
  Iterator find_preempted();
  void count_pages();
  void preempt(Iterator victim);
  void plan_rows(Iterator iterator);
  void plan_chunk(Iterator sequence);
  std::int64_t chunk_size(const Sequence& sequence) const;
  std::int64_t reserve_drafts(Sequence& sequence, std::int64_t rows);
  void plan_wanted(Sequence& sequence, SequenceStep& part);
  void end_drafts(Sequence& sequence, std::span<const std::int32_t> tokens);
  static void take_back_draw(SequenceStep& part, Sequence& sequence);

  SchedulerOptions options_;
  PageAllocator pages_;
  PrefixTree tree_{pages_, options_.page_size};
  std::optional<HostTier> host_;
  PrefixCounts prefix_counts_;
  std::list<Sequence> running_;
  std::list<Sequence> waiting_;
  std::list<Sequence> leaving_;                     // removed, but a step in flight computes them
  std::unordered_map<SequenceId, Iterator> index_;  // running and waiting
  FairQueue queue_;
  std::unordered_map<std::int32_t, std::int64_t> running_adapters_;  // of each, how many sequences run
  std::int64_t num_appended_ = 0;                                    // tokens for which there may be no pages yet
  std::int64_t num_held_ = 0;                                        // live sequences that are held
  std::uint64_t num_preemptions_ = 0;
  std::vector<SequenceId> preempted_;  // by the latest plan
  std::vector<SequenceId> withdrawn_;  // withdraw_held()'s

  std::list<Step> in_flight_;  // oldest first
  std::list<Step> spare_;      // keep their memory; the first is the one planned now

  std::uint64_t num_plans_ = 0;
  bool has_changed_ = false;  // something since a plan() that found nothing
  // While planning: the running sequences that lack more than their latest token, and have no rows yet.
  std::vector<Iterator> begun_;
  std::vector<PageId> passed_;               // pass_over()'s
  std::vector<const Sequence*> unfinished_;  // while planning: those that lack more after their part of the step

  std::optional<Iterator> newcomer_;  // while planning: others were preempted for it
  // The plan and the time from which on one may have a step of its own.
  std::uint64_t newcomer_plan_ = 0;
  FairQueue::Time newcomer_time_ = {};
  std::optional<StepCost> cost_;  // where steps have a target, or there is a host tier
  bool is_timed_ = false;         // while planning: what is added must fit the target
  // With a host tier.
  std::vector<const TierCopies*> tier_copies_;  // of the latest plan
  std::uint64_t told_copies_ = 0;               // the latest StepPlan::copies_before
  std::int64_t most_prompt_pages_ = 0;          // of a sequence so far
  double last_step_seconds_ = 0, host_page_seconds_ = 0;
  bool awaits_copies_ = false;  // while planning: the newcomer that was to begin waits for them

  // What is left of a step's room while it is planned.
  std::int64_t rows_left_ = 0;           // rows, within max_batch_tokens
  std::int64_t prompt_logits_left_ = 0;  // rows whose logits are wanted, within max_prompt_logits
  std::int64_t prompt_hidden_left_ = 0;  // rows whose hidden states are wanted, within max_prompt_hidden
  std::int64_t draft_rows_left_ =
      0;  // draft rows, within max_drafts; every running sequence can have a row beside them
  std::int64_t draft_pages_left_ = 0;  // free pages that no known token of a running sequence needs
};

}  // namespace minisgl
