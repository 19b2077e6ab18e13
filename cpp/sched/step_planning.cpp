// Planning one step: who computes what, who gives way, and how much room is left for drafts.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "sched/scheduler.h"

namespace minisgl {

void StepPlan::clear() {
  tokens.clear();
  sequences.clear();
  new_pages.clear();
  logit_rows.clear();
  targets.clear();
  hidden_rows.clear();
  copies.clear();
}

void Scheduler::Step::clear() {
  plan.clear();
  sequences.clear();
  new_tokens.clear();
  held.clear();
}

const StepPlan& Scheduler::plan() {
  MINISGL_CHECK(num_in_flight() < kMostInFlight, "plan() with ", num_in_flight(), " steps in flight");
  Step& step = spare_.front();
  step.clear();
  ++num_plans_;
  unfinished_.clear();
  rows_left_ = options_.max_batch_tokens;
  prompt_logits_left_ = options_.max_prompt_logits;
  const bool has_drafts = options_.max_drafts > 0;
  const std::int64_t pages_left =
      has_drafts || !in_flight_.empty() ? tree_.num_available() - num_missing_pages() : tree_.num_available();
  if (has_drafts) {
    draft_rows_left_ = std::clamp<std::int64_t>(rows_left_ - num_running(), 0, options_.max_drafts);
    draft_pages_left_ = std::max<std::int64_t>(0, pages_left);
  }
  // A sequence must be preempted where pages are missing.
  if (in_flight_.empty() || pages_left >= 0) {
    const bool preempted = plan_decodes();
    plan_prefills();
    if (!preempted) admit();
  }
  if (!step.plan.empty()) {
    in_flight_.splice(in_flight_.end(), spare_, spare_.begin());
  } else {
    MINISGL_CHECK(!in_flight_.empty() || !has_work(), "nothing planned for ", num_running(), " running and ",
                  num_waiting(), " waiting sequences");
  }
  return step.plan;
}

// Pages that the sequence lacks for its present tokens.
std::int64_t Scheduler::num_missing_pages(const Sequence& sequence) const {
  return pages_for(sequence.len()) - static_cast<std::int64_t>(sequence.pages.size());
}

// Pages that plan_decodes() will take, at most.
std::int64_t Scheduler::num_missing_pages() const {
  std::int64_t missing = 0, rows = 0;
  for (const Sequence& sequence : running_) {
    if (rows == rows_left_) break;
    if (!sequence.is_ready()) continue;
    if (sequence.decoding()) {
      // Where its last prompt row is wanted there may be no room left for it, and the row goes to another.
      if (sequence.num_computed >= sequence.end_wanted) ++rows;
    } else if (sequence.num_uncomputed() <= 1) {
      continue;
    }
    missing += num_missing_pages(sequence);
  }
  return missing;
}

bool Scheduler::plan_decodes() {
  const std::uint64_t before = num_preemptions_;
  has_chunks_ = false;
  // Victims are taken from the back, so what is already in the plan stays, and the next sequence stays valid unless the
  // sequence at hand was the last one.
  for (auto sequence = running_.begin(); sequence != running_.end() && rows_left_ > 0; ++sequence) {
    if (!sequence->is_ready()) continue;
    if (sequence->decoding()) {
      if (!grow(*sequence)) break;
      plan_rows(sequence);
    } else if (sequence->num_uncomputed() > 1) {
      has_chunks_ = true;
      if (!grow(*sequence)) break;  // tokens were appended to it
    }
  }
  return num_preemptions_ != before;
}

bool Scheduler::grow(Sequence& sequence) {
  const std::int64_t missing = num_missing_pages(sequence);
  if (missing == 0) return true;
  while (!tree_.allocate(missing, sequence.pages)) {
    const bool itself = &running_.back() == &sequence;
    preempt_latest();
    if (itself) return false;
  }
  return true;
}

void Scheduler::preempt_latest() {
  MINISGL_CHECK(in_flight_.empty(), "preemption with ", num_in_flight(), " steps in flight");
  MINISGL_CHECK(running_.size() > 1, "a sequence alone ran out of pages");
  const Iterator victim = std::prev(running_.end());
  release(*victim);
  victim->num_planned_pages = 0;
  victim->num_computed = 0;
  waiting_.splice(waiting_.begin(), running_, victim);
  victim->is_running = false;
  ++num_preemptions_;
}

void Scheduler::plan_prefills() {
  if (!has_chunks_) return;
  for (auto sequence = running_.begin(); sequence != running_.end() && rows_left_ > 0; ++sequence) {
    if (sequence->num_uncomputed() > 1) plan_chunk(sequence);
  }
}

void Scheduler::admit() {
  while (!waiting_.empty() && rows_left_ > 0 && num_running() < options_.max_running) {
    if (!admit(waiting_.begin())) return;
  }
}

// Begins with a waiting sequence, unless it has to wait for room, or for what another computes.
bool Scheduler::admit(Iterator next) {
  Sequence& sequence = *next;
  // Beside others, a page for each of them stays free (up to a part of the cache), or the newcomer's prefill would be
  // thrown away as soon as they need it.
  const std::int64_t spare = std::min(num_running(), pages_.num_total() / 16 + 1);
  if (tree_.num_available() < 1 + spare) return false;
  const std::int64_t most = most_shared(sequence);
  take_prefix(sequence, most);
  PrefixTree::Begun begun = find_begun(sequence, most);
  const std::int64_t needed = num_missing_pages(sequence) + spare;
  if (needed == tree_.num_available()) begun = {};  // its page may be one of those that are needed
  sequence.num_computed += begun.num_tokens;
  const std::int64_t rows = chunk_size(sequence);
  const bool may_begin =
      rows > (joins(sequence) ? 1 : 0) && !is_being_computed(sequence, most) && needed <= tree_.num_available();
  sequence.num_computed -= begun.num_tokens;
  if (!may_begin) {
    tree_.release(sequence.pages);
    sequence.pages.clear();
    sequence.num_computed = sequence.num_tree_pages = 0;
    return false;
  }
  if (begun.num_tokens > 0) copy_begun(sequence, begun);
  MINISGL_CHECK(grow(sequence));
  if (options_.prefix_cache && sequence.num_named == 0) {
    prefix_counts_.queries += static_cast<std::uint64_t>(sequence.len());
    prefix_counts_.hits += static_cast<std::uint64_t>(sequence.num_computed);
  }
  running_.splice(running_.end(), waiting_, next);
  sequence.is_running = true;
  plan_chunk(next);
  return true;
}

// Rows that the sequence may have of what is left in this step.
std::int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  std::int64_t rows = std::min(sequence.num_uncomputed(), rows_left_);
  if (sequence.end_wanted > 0) {
    // Rows before next_wanted() (computed again after a preemption) and those from end_wanted on cost nothing.
    const std::int64_t end = sequence.next_wanted() + prompt_logits_left_;
    if (end < sequence.end_wanted) rows = std::min(rows, end - sequence.num_computed);
  }
  return rows;
}

// Returns how many of its drafts a sequence may try behind `rows` other rows. It has the pages for them afterwards.
std::int64_t Scheduler::reserve_drafts(Sequence& sequence, std::int64_t rows) {
  const auto num_pages = static_cast<std::int64_t>(sequence.pages.size());
  const std::int64_t free = std::min(draft_pages_left_, tree_.num_available());
  const std::int64_t count =
      std::min({std::ssize(sequence.drafts), draft_rows_left_, rows_left_ - rows, sequence.max_len - sequence.len() - 1,
                (num_pages + free) * options_.page_size - sequence.len()});
  if (count <= 0) return 0;
  const std::int64_t missing = std::max<std::int64_t>(0, pages_for(sequence.len() + count) - num_pages);
  MINISGL_CHECK(tree_.allocate(missing, sequence.pages));
  draft_pages_left_ -= missing;
  draft_rows_left_ -= count;
  return count;
}

void Scheduler::plan_chunk(Iterator sequence) {
  plan_rows(sequence);
  if (sequence->num_uncomputed() > 1) unfinished_.push_back(&*sequence);
}

void Scheduler::plan_rows(Iterator iterator) {
  Sequence& sequence = *iterator;
  Step& step = spare_.front();
  StepPlan& plan = step.plan;
  const std::int64_t rows = chunk_size(sequence);
  if (rows == 0) return;
  const std::int64_t start = sequence.num_computed, end = start + rows;
  const bool draws = end == sequence.len() && sequence.len() < sequence.max_len;
  const std::int64_t drafts = draws && !sequence.drafts.empty() ? reserve_drafts(sequence, rows) : 0;
  const auto first_new_page = static_cast<std::int32_t>(plan.new_pages.size());
  SequenceStep part{.id = sequence.id,
                    .first_row = static_cast<std::int32_t>(plan.num_rows()),
                    .num_rows = static_cast<std::int32_t>(rows + drafts),
                    .start_position = static_cast<std::int32_t>(start),
                    .num_kept_pages = static_cast<std::int32_t>(sequence.num_planned_pages),
                    .first_new_page = first_new_page,
                    .num_new_pages = static_cast<std::int32_t>(sequence.pages.size()) -
                                     static_cast<std::int32_t>(sequence.num_planned_pages),
                    .num_draws = draws ? static_cast<std::int32_t>(drafts) + 1 : 0,
                    .adapter = sequence.space.adapter};
  if (part.num_new_pages > 0) {
    plan.new_pages.insert(plan.new_pages.end(), sequence.pages.begin() + sequence.num_planned_pages,
                          sequence.pages.end());
  }
  plan.tokens.insert(plan.tokens.end(), sequence.tokens.begin() + start, sequence.tokens.begin() + end);
  if (sequence.tokens[static_cast<std::size_t>(end) - 1] == Sequence::kPending) {
    plan.tokens.back() = -1 - sequence.pending_target;
  }
  if (drafts > 0) {
    plan.tokens.insert(plan.tokens.end(), sequence.drafts.begin(), sequence.drafts.begin() + drafts);
  }
  step.sequences.push_back(iterator);
  step.new_tokens.push_back(end);
  sequence.num_planned_pages = static_cast<std::int64_t>(sequence.pages.size());
  sequence.num_computed = end;
  if (start < sequence.prompt_len && options_.prefix_cache) remember_prompt(sequence);
  if (sequence.end_wanted > 0) plan_wanted(sequence, part);
  if (draws) {
    sequence.pending_target = static_cast<std::int32_t>(plan.targets.size());
    sequence.tokens.push_back(Sequence::kPending);
    sequence.drafts.clear();
    const auto index = static_cast<std::int32_t>(plan.sequences.size());
    for (std::int32_t row = part.first_draw(); row < part.first_row + part.num_rows; ++row) {
      plan.logit_rows.push_back(row);
      plan.targets.push_back({index, LogitTarget::kSample});
    }
  }
  plan.sequences.push_back(part);
  ++sequence.num_in_flight;
  rows_left_ -= rows + drafts;
}

// The rows of the part that the host gets something of.
void Scheduler::plan_wanted(Sequence& sequence, SequenceStep& part) {
  StepPlan& plan = spare_.front().plan;
  const std::int64_t start = part.start_position;
  const std::int64_t first = std::max({start, sequence.num_delivered, sequence.first_wanted});
  const std::int64_t end = std::min(sequence.num_computed, sequence.end_wanted);
  for (std::int64_t p = first; p < end; ++p) {
    const auto row = static_cast<std::int32_t>(part.first_row + p - start);
    if (sequence.wants_hidden) {
      plan.hidden_rows.push_back(row);
      ++part.num_hidden;
    } else {
      plan.logit_rows.push_back(row);
      plan.targets.push_back(
          {static_cast<std::int32_t>(plan.sequences.size()), sequence.tokens[static_cast<std::size_t>(p) + 1]});
    }
    --prompt_logits_left_;
  }
  sequence.num_delivered = std::max(sequence.num_delivered, end);
}

}  // namespace minisgl
