// Virtual token counters, as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): whoever was
// served least is next. One of which nothing waited gets no credit for that: it goes on with what the least served of
// those that wait has, or where nobody waits, with what the last of them had.
#include "sched/fair_queue.h"

#include <algorithm>

#include "core/error.h"

namespace minisgl {
namespace {

// Returns what the least served of those that wait was served; where nobody waits, what the one was that waited last.
template <typename Parties>
std::uint64_t least_served(const Parties& parties, typename Parties::key_type last) {
  const auto known = parties.find(last);
  std::uint64_t least = known == parties.end() ? 0 : known->second.served;
  bool found = false;
  for (const auto& [key, party] : parties) {
    if (party.num_waiting == 0 || (found && party.served >= least)) continue;
    least = party.served;
    found = true;
  }
  return least;
}

// Where a turn is, or belongs, among those of its flow.
auto place_of(std::deque<Turn*>& waiting, const Turn& turn) {
  return std::ranges::lower_bound(waiting, turn.arrival, {}, &Turn::arrival);
}

template <typename Entry>
bool is_idle(const Entry& entry) {
  return entry.second.num_live == 0;
}

// The entry of one that has one more sequence waiting.
template <typename Parties>
auto& entry_of(Parties& parties, typename Parties::key_type key, typename Parties::key_type last) {
  const auto known = parties.find(key);
  if (known != parties.end() && known->second.num_waiting > 0) return known->second;
  const std::uint64_t least = least_served(parties, last);
  if (known == parties.end() && parties.size() >= FairQueue::kMostIdle) {
    std::erase_if(parties, [&](const auto& entry) { return is_idle(entry) && entry.second.served <= least; });
    if (parties.size() >= FairQueue::kMostIdle) std::erase_if(parties, is_idle<typename Parties::value_type>);
  }
  auto& party = parties[key];
  party.served = std::max(party.served, least);
  return party;
}

}  // namespace

void FairQueue::arrive(Turn& turn, const Standing& standing, Time arrived) {
  turn.standing = standing;
  turn.arrival = num_arrivals_++;
  turn.since_ = arrived;
  turn.share_ = &entry_of(shares_, standing.share, last_share_);
  turn.user_ = &entry_of(turn.share_->users, standing.user, turn.share_->last_user);
  ++turn.share_->num_live;
  if (turn.user_->num_live++ == 0) ++num_live_users_;
  ++live_[turn.standing.priority];
  enter(turn);
}

void FairQueue::begin(Turn& turn) {
  turn.class_ = class_of(turn);
  if (now_ > turn.since_) turn.waited_ += now_ - turn.since_;
  exit(turn);
  turn.is_running = true;
  count_running(turn, 1);
}

void FairQueue::give_way(Turn& turn) {
  turn.is_running = false;
  count_running(turn, -1);
  turn.since_ = now_;
  enter(turn);
}

void FairQueue::leave(Turn& turn) {
  if (turn.is_running) {
    count_running(turn, -1);
  } else {
    exit(turn);
  }
  if (--turn.user_->num_live == 0) --num_live_users_;
  --turn.share_->num_live;
  turn.share_ = nullptr;
  turn.user_ = nullptr;
  const auto live = live_.find(turn.standing.priority);
  if (--live->second == 0) live_.erase(live);
}

void FairQueue::count_running(const Turn& turn, int change) {
  const int counting = turn.has_counts ? change : 0;
  for (Party* party : {static_cast<Party*>(turn.share_), static_cast<Party*>(turn.user_)}) {
    party->num_running += change;
    party->num_counting += counting;
  }
  num_counting_ += counting;
}

void FairQueue::enter(Turn& turn) {
  const auto [flow, is_new] = turn.user_->flows.try_emplace({turn.standing.priority, turn.has_counts});
  if (is_new) {
    flow->second.index = flows_.size();
    flows_.push_back(&flow->second);
  }
  std::deque<Turn*>& waiting = flow->second.waiting;
  if (waiting.empty() || waiting.back()->arrival < turn.arrival) {
    waiting.push_back(&turn);
  } else {
    waiting.insert(place_of(waiting, turn), &turn);
  }
  ++turn.share_->num_waiting;
  ++turn.user_->num_waiting;
}

void FairQueue::exit(Turn& turn) {
  const auto flow = turn.user_->flows.find({turn.standing.priority, turn.has_counts});
  MINISGL_CHECK(flow != turn.user_->flows.end(), "sequence ", turn.id, " does not wait");
  const auto place = place_of(flow->second.waiting, turn);
  MINISGL_CHECK(place != flow->second.waiting.end() && *place == &turn, "sequence ", turn.id, " does not wait");
  flow->second.waiting.erase(place);
  --turn.share_->num_waiting;
  --turn.user_->num_waiting;
  last_share_ = turn.standing.share;
  turn.share_->last_user = turn.standing.user;
  if (!flow->second.waiting.empty()) return;
  flows_.back()->index = flow->second.index;
  flows_[flow->second.index] = flows_.back();
  flows_.pop_back();
  turn.user_->flows.erase(flow);
}

void FairQueue::charge(Turn& turn, std::int64_t weighted_tokens) {
  if (turn.share_ == nullptr) return;
  turn.share_->served += static_cast<std::uint64_t>(weighted_tokens);
  turn.user_->served += static_cast<std::uint64_t>(weighted_tokens);
}

bool FairQueue::is_rival(const Standing& standing) const {
  if (has_rivals()) return true;
  if (live_.empty()) return false;
  const auto share = shares_.find(standing.share);
  if (share == shares_.end() || share->second.num_live == 0) return true;
  const auto user = share->second.users.find(standing.user);
  return user == share->second.users.end() || user->second.num_live == 0;
}

Turn* FairQueue::first(bool may_count) const {
  Turn* first = nullptr;
  for (const Flow* flow : flows_) {
    Turn* turn = flow->waiting.front();
    if (turn->has_counts && !may_count) continue;
    if (first == nullptr || before(*turn, *first)) first = turn;
  }
  return first;
}

bool FairQueue::before(const Turn& a, const Turn& b) const {
  const std::int32_t class_a = class_of(a), class_b = class_of(b);
  if (class_a != class_b) return class_a < class_b;
  const bool same_share = a.share_ == b.share_;
  const Party& party_a = same_share ? a.user() : a.share();
  const Party& party_b = same_share ? b.user() : b.share();
  // Nobody has been served anything between two that came at once: then it is whoever has less at work.
  if (party_a.served != party_b.served) return party_a.served < party_b.served;
  if (party_a.num_running != party_b.num_running) return party_a.num_running < party_b.num_running;
  return a.arrival < b.arrival;
}

std::int32_t FairQueue::class_of(const Turn& turn) const {
  if (turn.is_running) return turn.class_;
  const auto waited = turn.waited_ + std::max(now_ - turn.since_, std::chrono::steady_clock::duration::zero());
  const std::int64_t aged = turn.standing.priority - waited / kAging;
  return static_cast<std::int32_t>(std::max<std::int64_t>(aged, live_.begin()->first));
}

std::vector<std::pair<std::int32_t, std::int64_t>> FairQueue::waiting_by_priority() const {
  std::map<std::int32_t, std::int64_t> counts;
  for (const Flow* flow : flows_) {
    counts[flow->waiting.front()->standing.priority] += std::ssize(flow->waiting);
  }
  return {counts.begin(), counts.end()};
}

}  // namespace minisgl
