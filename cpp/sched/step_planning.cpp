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
  copies_before = 0;
}

void Scheduler::Step::clear() {
  plan.clear();
  sequences.clear();
  new_tokens.clear();
  held.clear();
  shape = {};
}

const StepPlan& Scheduler::plan(FairQueue::Time now) {
  MINISGL_CHECK(num_in_flight() < kMostInFlight, "plan() with ", num_in_flight(), " steps in flight");
  Step& step = spare_.front();
  step.clear();
  queue_.set_time(now);
  preempted_.clear();
  is_timed_ = false;
  newcomer_.reset();
  awaits_copies_ = false;
  ++num_plans_;
  unfinished_.clear();
  rows_left_ = options_.max_batch_tokens;
  prompt_logits_left_ = options_.max_prompt_logits;
  prompt_hidden_left_ = options_.max_prompt_hidden;
  // What was generated counts where somebody waits, and another could be next in its place.
  if (!queue_.empty() && queue_.has_rivals()) charge_running();
  if (make_room() && !plan_newcomer()) plan_everybody();
  has_changed_ = !step.plan.empty();
  if (host_) plan_tier_copies(step.plan);
  if (!step.plan.empty()) {
    in_flight_.splice(in_flight_.end(), spare_, spare_.begin());
  } else {
    MINISGL_CHECK(!in_flight_.empty() || !has_work() || copies_hold_pages() || num_held_ > 0, "nothing planned for ",
                  num_running(), " running and ", num_waiting(), " waiting sequences");
  }
  return step.plan;
}

void Scheduler::plan_everybody() {
  // Those that decode need a page each at most.
  const bool has_drafts = options_.max_drafts > 0;
  const bool has_pages = !has_drafts && tree_.num_available() >= num_running() + num_appended_;
  const std::int64_t pages_left = has_pages ? 0 : tree_.num_available() - num_missing_pages();
  if (has_drafts) {
    draft_rows_left_ = std::clamp<std::int64_t>(rows_left_ - num_running(), 0, options_.max_drafts);
    draft_pages_left_ = std::max<std::int64_t>(0, pages_left);
  }
  if (pages_left < 0 && copies_hold_pages()) return;
  // A sequence must be preempted where pages are missing.
  if (in_flight_.empty() || pages_left >= 0) {
    const bool preempted = pages_left < 0 && relieve();
    // One of them may find a page that it fills in the prefix tree, and take the last that was available.
    if (!has_pages) for_each_decode([this](Sequence& sequence) { grow(sequence); });
    plan_decodes();
    is_timed_ = options_.target_step_seconds > 0 && spare_.front().shape.decode_rows > 0;
    plan_prefills(!preempted);
  }
}

// Pages that the sequence lacks for its present tokens.
std::int64_t Scheduler::num_missing_pages(const Sequence& sequence) const {
  return pages_for(sequence.len()) - static_cast<std::int64_t>(sequence.pages.size());
}

// Calls `each` with the running sequences that plan_decodes() will reach, as far as rows may last.
template <typename Each>
void Scheduler::for_each_decode(const Each& each) {
  std::int64_t rows = 0;
  for (Sequence& sequence : running_) {
    if (rows == rows_left_) break;
    if (!sequence.is_ready()) continue;
    if (sequence.decoding()) {
      // Where its last prompt row is wanted there may be no room left for it, and the row goes to another.
      if (sequence.num_computed >= sequence.end_wanted) ++rows;
    } else if (sequence.num_uncomputed() <= 1) {
      continue;
    }
    each(sequence);
  }
}

// Pages that plan_decodes() will take, at most.
std::int64_t Scheduler::num_missing_pages() {
  std::int64_t missing = 0;
  for_each_decode([&](Sequence& sequence) { missing += num_missing_pages(sequence); });
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
  if (sequence.len() <= std::ssize(sequence.pages) * options_.page_size) return;
  const std::int64_t missing = num_missing_pages(sequence);
  MINISGL_CHECK(tree_.allocate(missing, sequence.pages), missing, " pages are missing");
}

// Prefills go on, and others begin, in the order of the queue: each chunk counts before the next is chosen.
void Scheduler::plan_prefills(bool may_admit) {
  while (rows_left_ > 0) {
    const auto begun =
        std::ranges::min_element(begun_, [&](Iterator a, Iterator b) { return queue_.before(a->turn, b->turn); });
    const Turn* waiting = may_admit && num_running() < options_.max_running ? queue_.first(may_count()) : nullptr;
    if (waiting != nullptr && (begun == begun_.end() || queue_.before(*waiting, (*begun)->turn))) {
      const Iterator next = index_.at(waiting->id);
      may_admit = admit(next);
      if (may_admit) plan_chunk(next);
    } else if (begun != begun_.end()) {
      plan_chunk(*begun);
      begun_.erase(begun);
    } else {
      return;
    }
  }
}

// Lets a waiting sequence run, unless it has to wait for room, or for what another computes.
bool Scheduler::admit(Iterator next) {
  Sequence& sequence = *next;
  if (sequence.is_held || !has_adapter_for(sequence)) return false;
  const std::int64_t spare = num_spare_pages();
  if (tree_.num_available() < 1 + spare) return false;
  const std::int64_t most = most_shared(sequence);
  take_prefix(sequence, most);
  if (host_ && waits_for_host(sequence, most)) return false;
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
  grow(sequence);
  if (options_.prefix_cache && sequence.num_named == 0) count_prefix(sequence);
  queue_.begin(sequence.turn);
  sequence.is_running = true;
  if (sequence.space.adapter != 0) ++running_adapters_[sequence.space.adapter];
  running_.splice(place_in_order(sequence), waiting_, next);
  return true;
}

// Whether it may run with its adapter beside those of others.
bool Scheduler::has_adapter_for(const Sequence& sequence) const {
  const std::int32_t adapter = sequence.space.adapter;
  return options_.max_adapters == 0 || adapter == 0 || running_adapters_.contains(adapter) ||
         std::ssize(running_adapters_) < options_.max_adapters;
}

void Scheduler::note_end(const Sequence& sequence) {
  const auto entry = running_adapters_.find(sequence.space.adapter);
  if (entry != running_adapters_.end() && --entry->second == 0) running_adapters_.erase(entry);
}

// Rows that the sequence may have of what is left in this step.
std::int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  std::int64_t rows = std::min(sequence.num_uncomputed(), rows_left_);
  if (is_timed_) rows = std::min(rows, cost_->rows_that_fit(spare_.front().shape, sequence.num_computed));
  if (sequence.end_wanted > 0) {
    // Rows before next_wanted() (computed again after a preemption) and those from end_wanted on cost nothing.
    const std::int64_t left = sequence.wants_hidden ? prompt_hidden_left_ : prompt_logits_left_;
    const std::int64_t end = sequence.next_wanted() + left;
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
  if (options_.prefix_cache && sequence->num_computed < sequence->prompt_len) pass_over(*sequence);
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
  const auto index = static_cast<std::int32_t>(plan.sequences.size());
  // Written where it stays: a copy of what was just written waits for it.
  SequenceStep& part = plan.sequences.emplace_back();
  part.id = sequence.id;
  part.first_row = static_cast<std::int32_t>(plan.num_rows());
  part.num_rows = static_cast<std::int32_t>(rows + drafts);
  part.start_position = static_cast<std::int32_t>(start);
  part.num_kept_pages = static_cast<std::int32_t>(sequence.num_planned_pages);
  part.first_new_page = static_cast<std::int32_t>(plan.new_pages.size());
  part.num_new_pages = static_cast<std::int32_t>(sequence.pages.size()) - part.num_kept_pages;
  part.num_draws = draws ? static_cast<std::int32_t>(drafts) + 1 : 0;
  part.adapter = sequence.space.adapter;
  if (part.num_new_pages > 0) {
    plan.new_pages.insert(plan.new_pages.end(), sequence.pages.begin() + sequence.num_planned_pages,
                          sequence.pages.end());
  }
  if (rows == 1) {
    plan.tokens.push_back(sequence.tokens[static_cast<std::size_t>(start)]);
  } else {
    plan.tokens.insert(plan.tokens.end(), sequence.tokens.begin() + start, sequence.tokens.begin() + end);
  }
  if (sequence.tokens[static_cast<std::size_t>(end) - 1] == Sequence::kPending) {
    plan.tokens.back() = -1 - sequence.pending_target;
    part.awaits_mask = static_cast<std::int32_t>(draws && sequence.awaits_masks);
  }
  sequence.tries_drafts = drafts > 0;
  if (drafts > 0) {
    plan.tokens.insert(plan.tokens.end(), sequence.drafts.begin(), sequence.drafts.begin() + drafts);
  }
  step.sequences.push_back(iterator);
  step.new_tokens.push_back(end);
  sequence.num_planned_pages = static_cast<std::int64_t>(sequence.pages.size());
  sequence.num_computed = end;
  if (start < sequence.prompt_len) charge_prompt(sequence, start);
  if (start < sequence.prompt_len && options_.prefix_cache) remember_prompt(sequence);
  if (sequence.end_wanted > 0) plan_wanted(sequence, part);
  if (draws) {
    sequence.pending_target = static_cast<std::int32_t>(plan.targets.size());
    sequence.tokens.push_back(Sequence::kPending);
    sequence.drafts.clear();
    ++sequence.num_uncharged;
    for (std::int32_t row = part.first_draw(); row < part.first_row + part.num_rows; ++row) {
      plan.logit_rows.push_back(row);
      plan.targets.push_back({index, LogitTarget::kSample});
    }
  }
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
      --prompt_hidden_left_;
    } else {
      plan.logit_rows.push_back(row);
      plan.targets.push_back(
          {static_cast<std::int32_t>(plan.sequences.size()) - 1, sequence.tokens[static_cast<std::size_t>(p) + 1]});
      --prompt_logits_left_;
    }
  }
  sequence.num_delivered = std::max(sequence.num_delivered, end);
}

}  // namespace minisgl
