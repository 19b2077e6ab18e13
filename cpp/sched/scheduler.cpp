// The lives of sequences: they come, their tokens come, they go.
#include "sched/scheduler.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace minisgl {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), pages_(options.num_pages), spare_(kMostInFlight + 1) {
  MINISGL_CHECK(options.page_size >= 1, "page_size is ", options.page_size);
  MINISGL_CHECK(options.max_running >= 1, "max_running is ", options.max_running);
  MINISGL_CHECK(options.max_counting >= 1, "max_counting is ", options.max_counting);
  MINISGL_CHECK(options.max_batch_tokens >= 1, "max_batch_tokens is ", options.max_batch_tokens);
  MINISGL_CHECK(options.max_prompt_logits >= 1, "max_prompt_logits is ", options.max_prompt_logits);
  MINISGL_CHECK(options.max_prompt_hidden >= 1, "max_prompt_hidden is ", options.max_prompt_hidden);
  MINISGL_CHECK(options.max_drafts >= 0, "max_drafts is ", options.max_drafts);
  if (options.host_pages > 0 && options.prefix_cache) {
    host_.emplace(tree_, pages_, options.host_pages, options.page_size);
  }
  if (options.target_step_seconds > 0 || host_) cost_.emplace(options.target_step_seconds);
}

void Scheduler::add(NewSequence added) {
  const auto prompt_len = static_cast<std::int64_t>(added.prompt.size());
  MINISGL_CHECK(prompt_len >= 1 && added.max_tokens >= 0);
  MINISGL_CHECK(pages_for(prompt_len + added.max_tokens) <= pages_.num_total(), prompt_len, " + ", added.max_tokens,
                " tokens do not fit ", pages_.num_total(), " pages");
  MINISGL_CHECK(!index_.contains(added.id), "sequence ", added.id, " is live");
  const bool wants_hidden = added.num_hidden > 0;
  MINISGL_CHECK(added.num_hidden >= 0 && added.num_hidden <= prompt_len, "num_hidden is ", added.num_hidden);
  MINISGL_CHECK(!wants_hidden || (added.max_tokens == 0 && !added.score_prompt), "hidden states of a sequence that ",
                "draws or scores");
  const SequenceId id = added.id;
  const Standing standing = added.standing;
  const FairQueue::Time arrived = added.arrived;
  if (queue_.is_rival(standing)) charge_running();
  most_prompt_pages_ = std::max(most_prompt_pages_, pages_for(prompt_len));
  has_changed_ = true;
  queue_.arrive(waiting_.emplace_back(std::move(added)).turn, standing, arrived);
  index_.emplace(id, std::prev(waiting_.end()));
}

void Scheduler::remove(SequenceId id) {
  const auto entry = index_.find(id);
  MINISGL_CHECK(entry != index_.end(), "sequence ", id, " is not live");
  const Iterator sequence = entry->second;
  has_changed_ = true;
  if (sequence->is_held) --num_held_;
  std::list<Sequence>& list = sequence->is_running ? running_ : waiting_;
  index_.erase(entry);
  if (sequence->is_running) note_end(*sequence);
  charge_generated(*sequence);
  queue_.leave(sequence->turn);
  if (sequence->num_in_flight > 0) {
    leaving_.splice(leaving_.end(), list, sequence);
  } else {
    release(*sequence);
    list.erase(sequence);
  }
}

Sequence& Scheduler::live(SequenceId id) const {
  const auto entry = index_.find(id);
  MINISGL_CHECK(entry != index_.end(), "sequence ", id, " is not live");
  return *entry->second;
}

void Scheduler::append(SequenceId id, std::span<const std::int32_t> tokens) {
  Sequence& sequence = live(id);
  MINISGL_CHECK(!sequence.is_pending(), "sequence ", id, " waits for a token");
  MINISGL_CHECK(sequence.len() + std::ssize(tokens) <= sequence.max_len, "sequence ", id, " of ", sequence.len(),
                " tokens gets ", tokens.size(), " more");
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  sequence.num_uncharged += static_cast<std::int32_t>(tokens.size());
  num_appended_ += std::ssize(tokens);
  sequence.drafts.clear();
  has_changed_ = true;
}

void Scheduler::propose(SequenceId id, std::span<const std::int32_t> drafts) {
  Sequence& sequence = live(id);
  MINISGL_CHECK((sequence.needs_token || in_flight_.empty()) && !sequence.is_pending(), "drafts for sequence ", id,
                ", which may be planned before its latest token is known");
  sequence.drafts.assign(drafts.begin(), drafts.end());
}

void Scheduler::need_token(SequenceId id, bool is_needed) {
  Sequence& sequence = live(id);
  MINISGL_CHECK(is_needed || !sequence.is_held, "sequence ", id, " is held");
  sequence.needs_token = is_needed;
  has_changed_ = true;
}

void Scheduler::hold(SequenceId id, bool is_held) {
  Sequence& sequence = live(id);
  MINISGL_CHECK(sequence.needs_token || sequence.awaits_masks, "sequence ", id,
                " is held, which may be planned before its token is known");
  num_held_ += static_cast<int>(is_held) - static_cast<int>(sequence.is_held);
  sequence.is_held = is_held;
  has_changed_ = true;
}

void Scheduler::take_back_draw(SequenceStep& part, Sequence& sequence) {
  part.is_withdrawn = true;
  sequence.tokens.pop_back();  // the pending one
  sequence.num_uncharged = std::max(0, sequence.num_uncharged - 1);
}

void Scheduler::withdraw(SequenceId id) {
  Sequence& sequence = live(id);
  if (!sequence.is_pending()) return;
  MINISGL_CHECK(!in_flight_.empty(), "no step is in flight");
  Step& step = in_flight_.back();
  const auto part = std::ranges::find(step.plan.sequences, id, &SequenceStep::id);
  MINISGL_CHECK(part != step.plan.sequences.end() && part->awaits_mask != 0, "no draw of sequence ", id,
                " awaits a mask");
  take_back_draw(*part, sequence);
  has_changed_ = true;
}

std::span<const SequenceId> Scheduler::withdraw_held() {
  MINISGL_CHECK(!in_flight_.empty(), "no step is in flight");
  Step& step = in_flight_.back();
  withdrawn_.clear();
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    SequenceStep& part = step.plan.sequences[i];
    if (part.awaits_mask == 0 || !index_.contains(part.id)) continue;
    Sequence& sequence = *step.sequences[i];
    if (!part.is_withdrawn) {
      if (!sequence.is_held) continue;
      take_back_draw(part, sequence);
      --sequence.num_computed;
    }
    withdrawn_.push_back(part.id);
  }
  return withdrawn_;
}

const StepPlan& Scheduler::oldest() const {
  MINISGL_CHECK(!in_flight_.empty(), "no step is in flight");
  return in_flight_.front().plan;
}

void Scheduler::complete(const StepTokens& drawn, double seconds) {
  MINISGL_CHECK(!in_flight_.empty(), "complete() without a step");
  has_changed_ = true;
  Step& step = in_flight_.front();
  MINISGL_CHECK(drawn.ends.size() == step.sequences.size(), drawn.ends.size(), " lists of tokens for ",
                step.sequences.size(), " sequences");
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceStep& part = step.plan.sequences[i];
    const std::span<const std::int32_t> tokens = drawn.of(i);
    const bool draws = part.num_draws > 0 && !part.is_withdrawn;
    MINISGL_CHECK(std::ssize(tokens) <= part.num_draws && tokens.empty() != draws, tokens.size(), " tokens of ",
                  part.num_draws, " draws for sequence ", part.id);
    Sequence& sequence = *step.sequences[i];
    --sequence.num_in_flight;
    if (!tokens.empty()) sequence.tokens[static_cast<std::size_t>(step.new_tokens[i])] = tokens.front();
    if (part.num_drafts() > 0) end_drafts(sequence, tokens.subspan(1));
  }
  tree_.release(step.held);
  if (cost_ && seconds > 0) {
    cost_->learn(step.shape, seconds);
    last_step_seconds_ = seconds;
  }
  for (auto sequence = leaving_.begin(); sequence != leaving_.end();) {
    if (sequence->num_in_flight > 0) {
      ++sequence;
      continue;
    }
    release(*sequence);
    sequence = leaving_.erase(sequence);
  }
  spare_.splice(spare_.end(), in_flight_, in_flight_.begin());
}

// Appends what follows the first token of a part with drafts, and gives back what the part reserved for drafts that
// didn't hold. Nothing else is in flight for such a sequence.
void Scheduler::end_drafts(Sequence& sequence, std::span<const std::int32_t> tokens) {
  sequence.tries_drafts = false;
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  sequence.num_computed += std::ssize(tokens);
  sequence.num_uncharged += static_cast<std::int32_t>(tokens.size());
  const auto needed = static_cast<std::size_t>(pages_for(sequence.len()));
  if (sequence.pages.size() <= needed) return;
  tree_.release(std::span(sequence.pages).subspan(needed));
  sequence.pages.resize(needed);
  sequence.num_planned_pages = static_cast<std::int64_t>(needed);
}

void Scheduler::check() const {
  MINISGL_CHECK(index_.size() == running_.size() + waiting_.size());
  MINISGL_CHECK(num_running() <= options_.max_running, num_running(), " running");
  const auto num_counting =
      std::ranges::count_if(running_, [](const Sequence& sequence) { return sequence.turn.has_counts; });
  MINISGL_CHECK(num_counting == queue_.num_counting() && num_counting <= options_.max_counting, num_counting,
                " running sequences have counts, ", queue_.num_counting(), " by the queue");
  std::vector<std::uint32_t> owners(pages_.num_total(), 0);
  const auto hold = [&](const Sequence& sequence) {
    MINISGL_CHECK(pages_for(sequence.num_computed) <= static_cast<std::int64_t>(sequence.pages.size()));
    MINISGL_CHECK(!sequence.is_pending() || sequence.num_in_flight > 0, "sequence ", sequence.id,
                  " waits for a token that nobody draws");
    for (const PageId page : sequence.pages) ++owners[page];
    for (std::int64_t i = 0; i < sequence.num_tree_pages; ++i) {
      MINISGL_CHECK(tree_.contains(sequence.pages[static_cast<std::size_t>(i)]), "page ", i, " of sequence ",
                    sequence.id, " isn't in the tree");
    }
  };
  for (const Sequence& sequence : running_) {
    MINISGL_CHECK(sequence.is_running && &live(sequence.id) == &sequence);
    hold(sequence);
  }
  for (const Sequence& sequence : leaving_) {
    MINISGL_CHECK(!index_.contains(sequence.id) && sequence.num_in_flight > 0, "sequence ", sequence.id, " stays");
    hold(sequence);
  }
  for (const Step& step : in_flight_) {
    for (const PageId page : step.held) ++owners[page];
  }
  if (host_) host_->check(owners);
  tree_.check(owners);
  pages_.check(owners);
  for (const Sequence& sequence : waiting_) {
    MINISGL_CHECK(!sequence.is_running && &live(sequence.id) == &sequence);
    MINISGL_CHECK(sequence.pages.empty() && sequence.num_computed == 0, "sequence ", sequence.id, " waits with pages");
  }
}

}  // namespace minisgl
