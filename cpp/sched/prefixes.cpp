// What sequences share: what a newcomer finds in the prefix tree, and what is kept there.
#include <algorithm>
#include <optional>
#include <utility>

#include "core/error.h"
#include "sched/scheduler.h"

namespace minisgl {

// How many of a waiting sequence's tokens needn't be computed if others have. Its last token must be, and the rows that
// are wanted; and each generated token is named to the ranks in a row of its own.
std::int64_t Scheduler::most_shared(const Sequence& sequence) const {
  if (!options_.prefix_cache) return 0;
  std::int64_t most = std::min(sequence.len() - 1, std::max(sequence.prompt_len, sequence.num_named));
  if (sequence.num_delivered < sequence.end_wanted) most = std::min(most, sequence.next_wanted());
  return most;
}

void Scheduler::take_prefix(Sequence& sequence, std::int64_t most) {
  tree_.take(sequence.space, std::span(sequence.tokens).first(static_cast<std::size_t>(most)), sequence.pages);
  sequence.num_tree_pages = std::ssize(sequence.pages);
  sequence.num_computed = sequence.num_tree_pages * options_.page_size;
}

// A sequence in the middle of its prompt passes over the pages that others have computed since, also where it has begun
// the first of them. The step has its own in their place until it is complete.
void Scheduler::pass_over(Sequence& sequence) {
  const std::int64_t first = sequence.num_tree_pages, start = first * options_.page_size;
  const std::int64_t most = most_shared(sequence);
  if (most < start + options_.page_size) return;
  const auto rest = std::span(sequence.tokens).subspan(static_cast<std::size_t>(start));
  passed_.clear();
  tree_.take(sequence.space, rest.first(static_cast<std::size_t>(most - start)), passed_,
             first == 0 ? PrefixTree::kRoot : sequence.pages[static_cast<std::size_t>(first) - 1]);
  if (passed_.empty()) return;
  const std::int64_t before = std::exchange(sequence.num_computed, start + std::ssize(passed_) * options_.page_size);
  if (chunk_size(sequence) <= (tree_.is_older(passed_.back(), num_plans_) ? 0 : 1)) {
    sequence.num_computed = before;
    tree_.release(passed_);
    return;
  }
  const auto own = sequence.pages.begin() + first;
  std::swap_ranges(passed_.begin(), passed_.end(), own);
  std::vector<PageId>& held = spare_.front().held;
  held.insert(held.end(), passed_.begin(), passed_.end());
  sequence.num_planned_pages = std::min(sequence.num_planned_pages, first);
  sequence.num_tree_pages += std::ssize(passed_);
}

// The page behind those that the sequence was given, if a copy of it is worth making. A page that this step writes to
// is not copied from.
PrefixTree::Begun Scheduler::find_begun(const Sequence& sequence, std::int64_t most) const {
  if (sequence.pages.empty() || most == sequence.num_computed) return {};
  const auto rest = std::span(sequence.tokens).subspan(static_cast<std::size_t>(sequence.num_computed));
  const PrefixTree::Begun begun = tree_.find_begun(
      sequence.pages.back(), rest.first(static_cast<std::size_t>(most - sequence.num_computed)), num_plans_);
  return is_worth_copying(begun.num_tokens) ? begun : PrefixTree::Begun{};
}

// Whether this step fills pages that the waiting sequence was given. A device may read what a single row attends to
// before the step's own keys and values are written, so there must be more of them (Ops::paged_attention).
bool Scheduler::joins(const Sequence& sequence) const {
  return !sequence.pages.empty() && !tree_.is_older(sequence.pages.back(), num_plans_);
}

// Whether a running sequence is about to compute the page that follows those that the waiting one was given.
bool Scheduler::is_being_computed(const Sequence& sequence, std::int64_t most) const {
  const std::int64_t end = (sequence.num_tree_pages + 1) * options_.page_size;
  if (end > most) return false;
  return std::ranges::any_of(unfinished_, [&](const Sequence* other) {
    return other->space == sequence.space && other->prompt_len >= end && other->num_computed < end &&
           std::equal(sequence.tokens.begin(), sequence.tokens.begin() + end, other->tokens.begin());
  });
}

// Whether the pages that follow those that the waiting sequence was given come from the host first. Then it has none.
bool Scheduler::waits_for_host(Sequence& sequence, std::int64_t most) {
  if (is_being_computed(sequence, most)) return false;
  const auto tokens = std::span(sequence.tokens).first(static_cast<std::size_t>(most));
  const std::int64_t num_known = sequence.num_tree_pages;
  const HostTier::Found found = host_->find(sequence.space, tokens, num_known);
  const std::int64_t count = found.num_pages - num_known;
  if (count <= 0) return false;
  if (found.is_coming) {
    tree_.release(sequence.pages);
  } else {
    const bool has_room = num_missing_pages(sequence) + num_spare_pages() <= tree_.num_available();
    if (!has_room || !is_worth_bringing(sequence, count)) return false;
    host_->bring(sequence.space, tokens, sequence.pages);
    sequence.num_brought = count * options_.page_size;
  }
  sequence.pages.clear();
  sequence.num_computed = sequence.num_tree_pages = 0;
  return awaits_copies_ = true;
}

// Whether so many pages that follow come sooner from the host than they are computed. What runs meanwhile keeps the
// sequence until its step ends.
bool Scheduler::is_worth_bringing(const Sequence& sequence, std::int64_t num_pages) const {
  const double waiting = in_flight_.empty() ? 0 : last_step_seconds_;
  const double coming = static_cast<double>(host_->num_moving() + num_pages) * host_page_seconds_ + waiting;
  const std::optional<double> computing =
      cost_->prefill_seconds(sequence.num_computed, num_pages * options_.page_size, sequence.num_uncomputed());
  return !computing || coming < *computing;
}

void Scheduler::count_prefix(Sequence& sequence) {
  const std::int64_t brought = std::min(std::exchange(sequence.num_brought, 0), sequence.num_computed);
  prefix_counts_.queries += static_cast<std::uint64_t>(sequence.len());
  prefix_counts_.hits += static_cast<std::uint64_t>(sequence.num_computed - brought);
  if (!host_) return;
  prefix_counts_.host_queries += static_cast<std::uint64_t>(sequence.len() - (sequence.num_computed - brought));
  prefix_counts_.host_hits += static_cast<std::uint64_t>(brought);
}

// Orders copies between the tiers: as many pages as the longest prompt and the next step may need are free or have a
// copy, unless the host has no room to keep them.
void Scheduler::plan_tier_copies(StepPlan& plan) {
  tier_copies_.clear();
  const std::int64_t needed =
      std::max(pages_.num_total() / 16, most_prompt_pages_ + pages_for(options_.max_batch_tokens));
  const std::int64_t num_wanted = std::min(host_->num_ready() / 2, needed);
  while (const TierCopies* copies = host_->next_copies(num_wanted)) tier_copies_.push_back(copies);
  has_changed_ = !plan.empty() || !tier_copies_.empty();
  if (plan.empty() || host_->num_done() == told_copies_) return;
  plan.copies_before = told_copies_ = host_->num_done();
}

void Scheduler::copies_done(std::uint64_t number) {
  if (number == host_->num_done()) return;
  host_->finish(number, num_plans_);
  has_changed_ = true;
}

void Scheduler::host_pages_ready(std::int64_t count) {
  if (count == host_->num_ready()) return;
  host_->set_ready(count);
  has_changed_ = true;
}

// The step owns the source with its path, as everybody who has a page of the tree does: the sequence may give way
// again, or be aborted, before it has rows in the step.
void Scheduler::copy_begun(Sequence& sequence, const PrefixTree::Begun& begun) {
  Step& step = spare_.front();
  const std::size_t num_held = step.held.size();
  step.held.insert(step.held.end(), sequence.pages.begin(), sequence.pages.end());
  step.held.push_back(begun.page);  // or it might be the page that is given up for its copy
  tree_.retain(std::span(step.held).subspan(num_held));
  MINISGL_CHECK(tree_.allocate(1, sequence.pages));
  const PageId destination = sequence.pages.back();
  step.held.push_back(destination);
  tree_.retain(std::span(step.held).last(1));
  step.plan.copies.push_back({.source = begun.page, .destination = destination});
  sequence.num_computed += begun.num_tokens;
}

// Puts the pages of the prompt that the step at hand fills into the tree. Where it has equal ones, computed at the same
// time or again, the sequence goes on with those; the step has its own until it is complete.
void Scheduler::remember_prompt(Sequence& sequence) {
  const std::int64_t num_full = std::min(sequence.num_computed, sequence.prompt_len) / options_.page_size;
  if (num_full <= sequence.num_tree_pages) return;
  std::vector<PageId>& held = spare_.front().held;
  const std::size_t num_held = held.size();
  const auto end = static_cast<std::size_t>(num_full * options_.page_size);
  tree_.insert({.space = sequence.space,
                .tokens = std::span(sequence.tokens).first(end),
                .num_known = sequence.num_tree_pages,
                .now = num_plans_},
               sequence.pages, held);
  if (held.size() > num_held) {
    sequence.num_planned_pages = std::min(sequence.num_planned_pages, sequence.num_tree_pages);
  }
  sequence.num_tree_pages = num_full;
}

// Takes a sequence's pages away, all of whose steps are complete; what is in them stays in the tree.
void Scheduler::release(Sequence& sequence) {
  if (options_.prefix_cache && !sequence.pages.empty()) {
    std::vector<PageId> replaced;
    const std::int64_t num_begun = sequence.num_computed % options_.page_size;
    tree_.insert({.space = sequence.space,
                  .tokens = std::span(sequence.tokens).first(static_cast<std::size_t>(sequence.num_computed)),
                  .num_known = sequence.num_tree_pages,
                  .keep_begun = is_worth_copying(num_begun),
                  .now = num_plans_},
                 sequence.pages, replaced);
    tree_.release(replaced);
  }
  tree_.release(sequence.pages);
  sequence.pages.clear();
  sequence.num_named = std::max(sequence.num_named, sequence.num_computed);
  sequence.num_computed = sequence.num_tree_pages = 0;
}

}  // namespace minisgl
