// The order of service and the pages behind it.
#include "sched/scheduler.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace minisgl {

void StepPlan::clear() {
  tokens.clear();
  sequences.clear();
  new_pages.clear();
  logit_rows.clear();
  targets.clear();
}

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pages_(options.num_pages), spare_(kMostInFlight + 1) {
  MINISGL_CHECK(options.page_size >= 1, "page_size is ", options.page_size);
  MINISGL_CHECK(options.max_running >= 1, "max_running is ", options.max_running);
  MINISGL_CHECK(options.max_batch_tokens >= 1, "max_batch_tokens is ", options.max_batch_tokens);
  MINISGL_CHECK(options.max_prompt_logits >= 1, "max_prompt_logits is ", options.max_prompt_logits);
}

std::int64_t Scheduler::pages_for(std::int64_t num_tokens) const {
  return (num_tokens + options_.page_size - 1) / options_.page_size;
}

void Scheduler::add(NewSequence sequence) {
  const auto prompt_len = static_cast<std::int64_t>(sequence.prompt.size());
  MINISGL_CHECK(prompt_len >= 1 && sequence.max_tokens >= 0);
  MINISGL_CHECK(pages_for(prompt_len + sequence.max_tokens) <= pages_.num_total(), prompt_len, " + ",
                sequence.max_tokens, " tokens do not fit ", pages_.num_total(), " pages");
  MINISGL_CHECK(!index_.contains(sequence.id), "sequence ", sequence.id, " is live");
  waiting_.push_back(Sequence{.id = sequence.id,
                              .tokens = std::move(sequence.prompt),
                              .prompt_len = prompt_len,
                              .max_len = prompt_len + sequence.max_tokens,
                              .score_prompt = sequence.score_prompt});
  index_.emplace(sequence.id, Entry{State::waiting, std::prev(waiting_.end())});
}

void Scheduler::remove(SequenceId id) {
  const auto entry = index_.find(id);
  MINISGL_CHECK(entry != index_.end(), "sequence ", id, " is not live");
  const auto [state, place] = entry->second;
  std::list<Sequence>& list = state == State::running ? running_ : waiting_;
  index_.erase(entry);
  if (place->num_in_flight > 0) {
    leaving_.splice(leaving_.end(), list, place);
  } else {
    pages_.release(place->pages);
    list.erase(place);
  }
}

const Sequence& Scheduler::sequence(SequenceId id) const {
  const auto entry = index_.find(id);
  MINISGL_CHECK(entry != index_.end(), "sequence ", id, " is not live");
  return *entry->second.place;
}

const StepPlan& Scheduler::plan() {
  MINISGL_CHECK(num_in_flight() < kMostInFlight, "plan() with ", num_in_flight(), " steps in flight");
  Step& step = spare_.front();
  step.plan.clear();
  step.places.clear();
  step.new_tokens.clear();
  rows_left_ = options_.max_batch_tokens;
  prompt_logits_left_ = options_.max_prompt_logits;
  if (in_flight_.empty() || !must_preempt()) {
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

const StepPlan& Scheduler::oldest() const {
  MINISGL_CHECK(!in_flight_.empty(), "no step is in flight");
  return in_flight_.front().plan;
}

// Whether the decodes of this step want more pages than are free.
bool Scheduler::must_preempt() const {
  std::int64_t missing = 0, rows = 0;
  for (const Sequence& sequence : running_) {
    if (rows == rows_left_) break;
    if (!sequence.decoding()) continue;
    ++rows;
    missing += pages_for(sequence.len()) - static_cast<std::int64_t>(sequence.pages.size());
  }
  return missing > pages_.num_free();
}

bool Scheduler::plan_decodes() {
  const std::uint64_t before = num_preemptions_;
  // Victims are taken from the back, so what is already in the plan stays, and the next place stays valid unless
  // the sequence at hand was the last one.
  for (auto place = running_.begin(); place != running_.end() && rows_left_ > 0; ++place) {
    if (!place->decoding()) continue;
    if (!grow(*place)) break;
    plan_rows(place);
  }
  return num_preemptions_ != before;
}

bool Scheduler::grow(Sequence& sequence) {
  const std::int64_t missing = pages_for(sequence.len()) - static_cast<std::int64_t>(sequence.pages.size());
  while (!pages_.allocate(missing, sequence.pages)) {
    const bool itself = &running_.back() == &sequence;
    preempt_latest();
    if (itself) return false;
  }
  return true;
}

void Scheduler::preempt_latest() {
  MINISGL_CHECK(running_.size() > 1, "a sequence alone ran out of pages");
  const Place victim = std::prev(running_.end());
  pages_.release(victim->pages);
  victim->pages.clear();
  victim->num_planned_pages = 0;
  victim->num_computed = 0;
  waiting_.splice(waiting_.begin(), running_, victim);
  index_.at(victim->id).state = State::waiting;
  ++num_preemptions_;
}

void Scheduler::plan_prefills() {
  for (auto place = running_.begin(); place != running_.end() && rows_left_ > 0; ++place) {
    if (place->num_uncomputed() > 1) plan_rows(place);
  }
}

void Scheduler::admit() {
  while (!waiting_.empty() && rows_left_ > 0 && num_running() < options_.max_running) {
    const Place next = waiting_.begin();
    if (chunk_size(*next) == 0) return;
    // Beside others, a page for each of them stays free (up to a part of the cache), or the newcomer's prefill would be
    // thrown away as soon as they need it.
    const std::int64_t needed = pages_for(next->len());
    const std::int64_t spare = std::min(num_running(), pages_.num_total() / 16 + 1);
    if (pages_.num_free() < needed + spare || !pages_.allocate(needed, next->pages)) return;
    running_.splice(running_.end(), waiting_, next);
    index_.at(next->id).state = State::running;
    plan_rows(next);
  }
}

// Rows that the sequence may have of what is left in this step.
std::int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  std::int64_t rows = std::min(sequence.num_uncomputed(), rows_left_);
  if (sequence.score_prompt) {
    // Rows before num_scored (computed again after a preemption) and the last prompt row cost no prompt logits.
    const std::int64_t first_scored = std::max(sequence.num_computed, sequence.num_scored);
    const std::int64_t end = first_scored + prompt_logits_left_;
    if (end < sequence.prompt_len - 1) rows = std::min(rows, end - sequence.num_computed);
  }
  return rows;
}

void Scheduler::plan_rows(Place place) {
  Sequence& sequence = *place;
  Step& step = spare_.front();
  StepPlan& plan = step.plan;
  const std::int64_t rows = chunk_size(sequence);
  if (rows == 0) return;
  const std::int64_t start = sequence.num_computed, end = start + rows;
  const auto index = static_cast<std::int32_t>(plan.sequences.size());
  const auto first_row = static_cast<std::int32_t>(plan.num_rows());
  const auto first_new_page = static_cast<std::int32_t>(plan.new_pages.size());
  const bool samples = end == sequence.len() && sequence.len() < sequence.max_len;
  plan.new_pages.insert(plan.new_pages.end(), sequence.pages.begin() + sequence.num_planned_pages,
                        sequence.pages.end());
  plan.tokens.insert(plan.tokens.end(), sequence.tokens.begin() + start, sequence.tokens.begin() + end);
  plan.sequences.push_back({.id = sequence.id,
                            .first_row = first_row,
                            .num_rows = static_cast<std::int32_t>(rows),
                            .start_position = static_cast<std::int32_t>(start),
                            .num_kept_pages = static_cast<std::int32_t>(sequence.num_planned_pages),
                            .first_new_page = first_new_page,
                            .num_new_pages = static_cast<std::int32_t>(plan.new_pages.size()) - first_new_page,
                            .samples = samples});
  if (sequence.tokens[static_cast<std::size_t>(end - 1)] == Sequence::kPending) {
    plan.tokens.back() = -1 - sequence.pending_target;
  }
  step.places.push_back(place);
  step.new_tokens.push_back(end);
  sequence.num_planned_pages = static_cast<std::int64_t>(sequence.pages.size());
  if (sequence.score_prompt) {
    const std::int64_t scored_end = std::min(end, sequence.prompt_len - 1);
    for (std::int64_t p = std::max(start, sequence.num_scored); p < scored_end; ++p) {
      plan.logit_rows.push_back(static_cast<std::int32_t>(first_row + p - start));
      plan.targets.push_back({index, sequence.tokens[p + 1]});
      --prompt_logits_left_;
    }
    sequence.num_scored = std::max(sequence.num_scored, scored_end);
  }
  if (samples) {
    sequence.pending_target = static_cast<std::int32_t>(plan.targets.size());
    sequence.tokens.push_back(Sequence::kPending);
    plan.logit_rows.push_back(static_cast<std::int32_t>(first_row + rows - 1));
    plan.targets.push_back({index, LogitTarget::kSample});
  }
  sequence.num_computed = end;
  ++sequence.num_in_flight;
  rows_left_ -= rows;
}

void Scheduler::complete(std::span<const std::int32_t> sampled) {
  MINISGL_CHECK(!in_flight_.empty(), "complete() without a step");
  Step& step = in_flight_.front();
  std::size_t next = 0;
  for (std::size_t i = 0; i < step.places.size(); ++i) {
    const Place place = step.places[i];
    --place->num_in_flight;
    if (step.plan.sequences[i].samples) {
      MINISGL_CHECK(next < sampled.size(), "too few sampled tokens");
      place->tokens[static_cast<std::size_t>(step.new_tokens[i])] = sampled[next++];
    }
  }
  MINISGL_CHECK(next == sampled.size(), "too many sampled tokens");
  for (auto place = leaving_.begin(); place != leaving_.end();) {
    if (place->num_in_flight > 0) {
      ++place;
      continue;
    }
    pages_.release(place->pages);
    place = leaving_.erase(place);
  }
  spare_.splice(spare_.end(), in_flight_, in_flight_.begin());
}

void Scheduler::check() const {
  MINISGL_CHECK(index_.size() == running_.size() + waiting_.size());
  MINISGL_CHECK(num_running() <= options_.max_running, num_running(), " running");
  std::vector<std::uint32_t> owners(pages_.num_total(), 0);
  const auto hold = [&](const Sequence& sequence) {
    MINISGL_CHECK(pages_for(sequence.num_computed) <= static_cast<std::int64_t>(sequence.pages.size()));
    MINISGL_CHECK(sequence.tokens.back() != Sequence::kPending || sequence.num_in_flight > 0, "sequence ", sequence.id,
                  " waits for a token that nobody draws");
    for (const PageId page : sequence.pages) ++owners[page];
  };
  for (const Sequence& sequence : running_) {
    MINISGL_CHECK(index_.at(sequence.id).state == State::running && &*index_.at(sequence.id).place == &sequence);
    hold(sequence);
  }
  for (const Sequence& sequence : leaving_) {
    MINISGL_CHECK(!index_.contains(sequence.id) && sequence.num_in_flight > 0, "sequence ", sequence.id, " stays");
    hold(sequence);
  }
  pages_.check(owners);
  for (const Sequence& sequence : waiting_) {
    MINISGL_CHECK(index_.at(sequence.id).state == State::waiting && &*index_.at(sequence.id).place == &sequence);
    MINISGL_CHECK(sequence.pages.empty() && sequence.num_computed == 0, "sequence ", sequence.id, " waits with pages");
  }
}

}  // namespace minisgl
