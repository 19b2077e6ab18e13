// Planning one step: who computes what, and how much room is left for drafts.
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
  copied.clear();
  shape = {};
}

const StepPlan& Scheduler::plan(FairQueue::Time now) {
  MINISGL_CHECK(num_in_flight() < kMostInFlight, "plan() with ", num_in_flight(), " steps in flight");
  Step& step = spare_.front();
  step.clear();
  queue_.set_time(now);
  preempted_.clear();
  is_timed_ = false;
  rows_left_ = options_.max_batch_tokens;
  prompt_logits_left_ = options_.max_prompt_logits;
  // What was generated counts where somebody waits, and another could be next in its place.
  if (!queue_.empty() && queue_.has_rivals()) charge_running();
  const bool may_plan = make_room();
  // Those that decode need a page each at most.
  const bool has_drafts = options_.max_drafts > 0;
  const bool has_pages = !has_drafts && pages_.num_free() >= num_running() + num_appended_;
  const std::int64_t pages_left = has_pages ? 0 : pages_.num_free() - num_missing_pages();
  if (has_drafts) {
    draft_rows_left_ = std::clamp<std::int64_t>(rows_left_ - num_running(), 0, options_.max_drafts);
    draft_pages_left_ = std::max<std::int64_t>(0, pages_left);
  }
  // A sequence must be preempted where pages are missing.
  if (may_plan && (in_flight_.empty() || pages_left >= 0)) {
    const bool preempted = pages_left < 0 && relieve();
    plan_decodes();
    is_timed_ = cost_.has_value() && step.shape.decode_rows > 0;
    plan_prefills(!preempted);
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

void Scheduler::plan_decodes() {
  begun_.clear();
  for (auto sequence = running_.begin(); sequence != running_.end() && rows_left_ > 0; ++sequence) {
    if (!sequence->is_ready()) continue;
    if (sequence->decoding()) {
      grow(*sequence);
      plan_rows(sequence);
    } else if (sequence->num_uncomputed() > 1) {
      grow(*sequence);  // tokens may have been appended to it
      begun_.push_back(sequence);
    }
  }
  if (rows_left_ > 0) num_appended_ = 0;
}

void Scheduler::grow(Sequence& sequence) {
  const std::int64_t missing = num_missing_pages(sequence);
  if (missing > 0) MINISGL_CHECK(pages_.allocate(missing, sequence.pages), missing, " pages are missing");
}

// Prefills go on, and others begin, in the order of the queue: each chunk counts before the next is chosen.
void Scheduler::plan_prefills(bool may_admit) {
  while (rows_left_ > 0) {
    const auto begun =
        std::ranges::min_element(begun_, [&](Iterator a, Iterator b) { return queue_.before(a->turn, b->turn); });
    const Turn* waiting = may_admit && num_running() < options_.max_running ? queue_.first() : nullptr;
    if (waiting != nullptr && (begun == begun_.end() || queue_.before(*waiting, (*begun)->turn))) {
      const Iterator next = index_.at(waiting->id);
      may_admit = admit(next);
      if (may_admit) plan_rows(next);
    } else if (begun != begun_.end()) {
      plan_rows(*begun);
      begun_.erase(begun);
    } else {
      return;
    }
  }
}

// Lets a waiting sequence run, unless there is no room for it.
bool Scheduler::admit(Iterator next) {
  const std::int64_t num_shared = next->prefix.num_tokens > 0 ? num_shareable(*next) : 0;
  next->num_computed = num_shared;
  const bool fits = chunk_size(*next) > 0;
  next->num_computed = 0;
  if (!fits) return false;
  if (!has_pages_for(*next, num_shared / options_.page_size)) return false;
  if (num_shared > 0) share(*next, num_shared);
  grow(*next);
  queue_.begin(next->turn);
  next->is_running = true;
  running_.splice(place_in_order(*next), waiting_, next);
  return true;
}

// Returns how many tokens of a waiting sequence another has computed in the steps before this one. The last token and
// the rows that are wanted are computed in any case. A page that this step copies to is not copied from.
std::int64_t Scheduler::num_shareable(const Sequence& sequence) const {
  const auto entry = index_.find(sequence.prefix.sequence);
  if (entry == index_.end() || !entry->second->is_running) return 0;
  const Sequence& other = *entry->second;
  if (other.adapter != sequence.adapter) return 0;
  std::int64_t computed = other.num_computed;
  for (const SequenceStep& part : spare_.front().plan.sequences) {
    if (part.id == other.id) computed = part.start_position;
  }
  std::int64_t count = std::min({sequence.prefix.num_tokens, computed, sequence.len() - 1});
  if (sequence.num_delivered < sequence.end_wanted) count = std::min(count, sequence.next_wanted());
  const std::int64_t num_full = count / options_.page_size;
  if (count % options_.page_size > 0) {
    const PageId last = other.pages[static_cast<std::size_t>(num_full)];
    const auto& copies = spare_.front().plan.copies;
    if (std::ranges::find(copies, last, &PageCopy::destination) != copies.end()) count = num_full * options_.page_size;
  }
  MINISGL_CHECK(std::equal(sequence.tokens.begin(), sequence.tokens.begin() + count, other.tokens.begin()), "sequence ",
                sequence.id, " does not begin like sequence ", other.id);
  return count;
}

// Gives a waiting sequence the pages of its prefix: those that are full with the other's, a copy of one that isn't.
void Scheduler::share(Sequence& sequence, std::int64_t num_tokens) {
  Step& step = spare_.front();
  const Sequence& other = live(sequence.prefix.sequence);
  const std::int64_t num_full = num_tokens / options_.page_size;
  sequence.pages.assign(other.pages.begin(), other.pages.begin() + num_full);
  pages_.retain(sequence.pages);
  sequence.num_computed = num_tokens;
  if (num_tokens % options_.page_size == 0) return;
  MINISGL_CHECK(pages_.allocate(1, sequence.pages));
  const PageCopy copy{.source = other.pages[static_cast<std::size_t>(num_full)],
                      .destination = sequence.pages.back(),
                      .tier = PageTier::device};
  step.plan.copies.push_back(copy);
  step.copied.insert(step.copied.end(), {copy.source, copy.destination});
  pages_.retain(std::span(step.copied).last(2));
}

// Rows that the sequence may have of what is left in this step.
std::int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  std::int64_t rows = std::min(sequence.num_uncomputed(), rows_left_);
  if (is_timed_) rows = std::min(rows, cost_->rows_that_fit(spare_.front().shape, sequence.num_computed));
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
  const std::int64_t free = std::min(draft_pages_left_, pages_.num_free());
  const std::int64_t count =
      std::min({std::ssize(sequence.drafts), draft_rows_left_, rows_left_ - rows, sequence.max_len - sequence.len() - 1,
                (num_pages + free) * options_.page_size - sequence.len()});
  if (count <= 0) return 0;
  const std::int64_t missing = std::max<std::int64_t>(0, pages_for(sequence.len() + count) - num_pages);
  MINISGL_CHECK(pages_.allocate(missing, sequence.pages));
  draft_pages_left_ -= missing;
  draft_rows_left_ -= count;
  return count;
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
                    .adapter = sequence.adapter};
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
  if (start < sequence.prompt_len) charge_prompt(sequence, start);
  if (sequence.end_wanted > 0) plan_wanted(sequence, part);
  if (draws) {
    sequence.pending_target = static_cast<std::int32_t>(plan.targets.size());
    sequence.tokens.push_back(Sequence::kPending);
    sequence.drafts.clear();
    ++sequence.num_uncharged;
    const auto index = static_cast<std::int32_t>(plan.sequences.size());
    for (std::int32_t row = part.first_draw(); row < part.first_row + part.num_rows; ++row) {
      plan.logit_rows.push_back(row);
      plan.targets.push_back({index, LogitTarget::kSample});
    }
  }
  plan.sequences.push_back(part);
  ++sequence.num_in_flight;
  rows_left_ -= rows + drafts;
  if (cost_) {
    const bool decodes = rows == 1 && start >= sequence.prompt_len;
    decodes ? step.shape.add_decode(start, rows + drafts) : step.shape.add_prefill(start, rows);
  }
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
