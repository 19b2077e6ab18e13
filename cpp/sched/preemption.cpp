// Who gives way to whom.
#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "sched/scheduler.h"

namespace minisgl {

// Where a sequence that begins belongs among the running ones.
Scheduler::Iterator Scheduler::place_in_order(const Sequence& sequence) {
  const std::int32_t own_class = queue_.class_of(sequence.turn);
  Iterator place = running_.end();
  while (place != running_.begin()) {
    const Turn& before = std::prev(place)->turn;
    const std::int32_t its_class = queue_.class_of(before);
    if (its_class < own_class || (its_class == own_class && before.arrival < sequence.turn.arrival)) break;
    --place;
  }
  return place;
}

// Charges a sequence's share for the tokens from `start` on that the plan computes of its prompt, once each.
void Scheduler::charge_prompt(Sequence& sequence, std::int64_t start) {
  const std::int64_t end = std::min(sequence.num_computed, sequence.prompt_len);
  if (end <= sequence.num_charged) return;
  FairQueue::charge(sequence.turn, FairQueue::kPromptWeight * (end - std::max(start, sequence.num_charged)));
  sequence.num_charged = end;
}

void Scheduler::charge_generated(Sequence& sequence) {
  FairQueue::charge(sequence.turn, FairQueue::kGeneratedWeight * std::exchange(sequence.num_uncharged, 0));
}

void Scheduler::charge_running() {
  for (Sequence& sequence : running_) charge_generated(sequence);
}

// Lets the next of the queue begin at the cost of others, where there is no room for it and that is fair; where the
// next waits for others' counts, the next that has none. Returns false where that has to wait for the steps in flight.
bool Scheduler::make_room() {
  if (queue_.empty() || !queue_.has_rivals()) return true;
  Turn* turn = queue_.first();
  if (turn->has_counts && !may_count() && find_displaced(*index_.at(turn->id)) == running_.end()) {
    turn = queue_.first(false);
    if (turn == nullptr) return true;
  }
  const Iterator next = index_.at(turn->id);
  if (copies_hold_pages() || find_displaced(*next) == running_.end()) return true;
  if (!in_flight_.empty()) return false;
  while (!has_place_for(*next) || (!admit(next) && !awaits_copies_)) {
    const Iterator victim = find_displaced(*next);
    if (victim == running_.end()) break;
    preempt(victim);
  }
  next->toll = next->len();
  if (next->is_running) newcomer_ = next;
  return true;
}

// Gives a prompt a step of its own where nothing of its user runs, and of others many do, or some do and still others
// wait: a step that they decode in takes many times what a short prompt does. Not one right after the other, and none
// where steps have a target. Returns whether it did.
bool Scheduler::plan_newcomer() {
  if (options_.target_step_seconds > 0 || waiting_.empty() || !queue_.has_rivals() || num_plans_ < newcomer_plan_)
    return false;
  if (queue_.time() < newcomer_time_) return false;
  if (!newcomer_) {
    const std::size_t crowd = waiting_.size() > 1 ? 1 : kCrowd;
    if (running_.size() < crowd || num_running() == options_.max_running) return false;
    const Turn* first = queue_.first(may_count());
    if (first == nullptr) return false;
    const Iterator next = index_.at(first->id);
    if (next->turn.user().num_running > 0 || next->len() > rows_left_ || !admit(next)) return false;
    newcomer_ = next;
  }
  const Sequence& sequence = **newcomer_;
  if (running_.size() < 2 || sequence.turn.user().num_running > 1 || sequence.num_uncomputed() > rows_left_)
    return false;
  newcomer_plan_ = num_plans_ + kPlansBetweenNewcomers;
  newcomer_time_ = queue_.time() + kTimeBetweenNewcomers;
  draft_rows_left_ = draft_pages_left_ = 0;
  plan_chunk(*newcomer_);
  return true;
}

// Whether `other`, which runs, gives way to `next`, which waits for a place, for room for its counts or for pages: it
// is of a lower class, or of a share (or user of the same share) that was served more, and has twice as much at work as
// the other even afterwards; as much where the other has nothing.
bool Scheduler::displaces(const Sequence& next, const Sequence& other) const {
  const Turn &a = next.turn, &b = other.turn;
  const bool lacks_counts = a.has_counts && !may_count();
  if (lacks_counts && !b.has_counts) return false;
  const std::int32_t class_a = queue_.class_of(a), class_b = queue_.class_of(b);
  if (class_a != class_b) return class_a < class_b;
  const bool same_share = &a.share() == &b.share();
  const Party& gains = same_share ? a.user() : a.share();
  const Party& loses = same_share ? b.user() : b.share();
  if (&gains == &loses || loses.served < gains.served + static_cast<std::uint64_t>(next.toll)) return false;
  const std::int64_t factor = gains.num_running == 0 ? 1 : 2;
  const bool lacks_place = num_running() == options_.max_running;
  if (lacks_place && loses.num_running - 1 < factor * (gains.num_running + 1)) return false;
  if (lacks_counts && loses.num_counting - 1 < factor * (gains.num_counting + 1)) return false;
  return has_pages_for(next) ||
         loses.num_pages - std::ssize(other.pages) >= factor * (gains.num_pages + pages_for(next.len()));
}

// Beside others, a page for each of them stays free (up to a part of the cache), or a newcomer's prefill would be
// thrown away as soon as they need it.
std::int64_t Scheduler::num_spare_pages() const {
  return std::min(num_running(), pages_.num_total() / 16 + 1);
}

// Whether a waiting sequence surely finds room, whatever it shares.
bool Scheduler::has_pages_for(const Sequence& sequence) const {
  return tree_.num_available() >= pages_for(sequence.len()) + num_spare_pages();
}

// Returns the one that gives way to `next`, the lowest class first, then the latest; the end where there is room or
// nobody does. The first of all stays.
Scheduler::Iterator Scheduler::find_displaced(Sequence& next) {
  if (running_.size() < 2 || (has_place_for(next) && has_pages_for(next))) return running_.end();
  next.turn.share().num_pages = next.turn.user().num_pages = 0;
  count_pages();
  for (Iterator other = std::prev(running_.end()); other != running_.begin(); --other) {
    if (displaces(next, *other)) return other;
  }
  return running_.end();
}

// Preempts until those that decode have the pages for it.
bool Scheduler::relieve() {
  bool preempted = false;
  while (num_missing_pages() > tree_.num_available()) {
    preempt(find_preempted());
    preempted = true;
  }
  return preempted;
}

// Returns the one of the lowest class, of those of the share that has the most pages, of those of its user that has,
// the latest. The first of all stays.
Scheduler::Iterator Scheduler::find_preempted() {
  MINISGL_CHECK(running_.size() > 1, "a sequence alone ran out of pages");
  count_pages();
  Iterator victim = std::prev(running_.end());
  const std::int32_t lowest = queue_.class_of(victim->turn);
  for (Iterator other = std::prev(victim); other != running_.begin(); --other) {
    const Turn &a = other->turn, &b = victim->turn;
    if (queue_.class_of(a) != lowest) break;
    const bool same_share = &a.share() == &b.share();
    if (same_share ? a.user().num_pages > b.user().num_pages : a.share().num_pages > b.share().num_pages) {
      victim = other;
    }
  }
  return victim;
}

void Scheduler::count_pages() {
  for (Sequence& sequence : running_) sequence.turn.share().num_pages = sequence.turn.user().num_pages = 0;
  for (Sequence& sequence : running_) {
    sequence.turn.share().num_pages += std::ssize(sequence.pages);
    sequence.turn.user().num_pages += std::ssize(sequence.pages);
  }
}

void Scheduler::preempt(Iterator victim) {
  MINISGL_CHECK(in_flight_.empty(), "preemption with ", num_in_flight(), " steps in flight");
  release(*victim);
  victim->num_planned_pages = 0;
  charge_generated(*victim);
  victim->is_running = false;
  note_end(*victim);
  victim->toll = victim->len();
  queue_.give_way(victim->turn);
  preempted_.push_back(victim->id);
  waiting_.splice(waiting_.begin(), running_, victim);
  ++num_preemptions_;
}

}  // namespace minisgl
