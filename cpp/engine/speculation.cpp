#include "engine/speculation.h"

#include <algorithm>

#include "engine/executor.h"

namespace minisgl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMostMisses = 6;    // in a row, at a place that goes on behind wrong tokens
constexpr int kPlaceMemory = 10;  // tokens that the rate of a place is of
constexpr int kHopeMemory = 100;
constexpr int kLengthMemory = 50;      // and that of a match of some length
constexpr double kLeastChance = 0.05;  // of a draft that is looked at
constexpr double kLeastGain = 1.02;    // over a step without drafts: what is measured is not exact
constexpr std::int64_t kMostLen = std::int64_t{1} << 31U;

// Adds the time until its end.
class Timed {
 public:
  explicit Timed(double& seconds) : seconds_(seconds) {}
  ~Timed() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Timed(const Timed&) = delete;

 private:
  double& seconds_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace

void Speculation::add(SequenceId id, const Request& request) {
  const bool may = is_on_ && request.speculate && request.num_to_come() > 1 && !depends_on_output(request.sampling);
  if (!may) return;
  const Timed timed(counts_.seconds);
  Speculated sequence{.text = NgramText(kMostLen),
                      .kept = kept_of({request.prefix_salt, request.standing.share}),
                      .prompt_len = std::ssize(request.prompt) - request.num_resumed};
  sequence.text.append(request.prompt);
  live_.emplace(id, std::move(sequence));
}

std::shared_ptr<Speculation::Kept> Speculation::kept_of(const Key& key) {
  const auto found = std::ranges::find(kept_, key, [](const auto& kept) { return kept->key; });
  if (found != kept_.end() && (*found)->text.len() < kMostLen) {
    kept_.splice(kept_.begin(), kept_, found);
  } else {
    if (found != kept_.end()) kept_.erase(found);
    if (kept_.size() == kMostKeys) kept_.pop_back();
    kept_.push_front(std::make_shared<Kept>(Kept{.key = key}));
  }
  return kept_.front();
}

// What it has generated is kept for others.
void Speculation::leave(SequenceId id) {
  const auto entry = live_.find(id);
  if (entry == live_.end()) return;
  const Timed timed(counts_.seconds);
  const Speculated& sequence = entry->second;
  std::vector<std::int32_t> tokens;
  for (std::int64_t p = std::max(sequence.prompt_len, sequence.text.len() - kKeptTokens / 2); p < sequence.text.len();
       ++p) {
    tokens.push_back(sequence.text.at(p));
  }
  tokens.push_back(NgramText::kGap);
  if (tokens.size() > 1) sequence.kept->text.append(tokens);
  live_.erase(entry);
  if (live_.empty()) takes_turns_ = false;
}

void Speculation::learn(const StepPlan& plan, const StepTokens& drawn, Clock::time_point now, double seconds) {
  if (!is_on_) return;
  const Timed timed(counts_.seconds);
  learn_cost(plan, now, seconds);
  if (live_.empty()) return;
  count(plan, drawn);
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const std::span<const std::int32_t> tokens = drawn.of(i);
    if (tokens.empty()) continue;
    const auto entry = live_.find(plan.sequences[i].id);
    if (entry == live_.end()) continue;
    check_predictions(entry->second, tokens);
    entry->second.text.append(tokens);
    predict(entry->second);
  }
}

// Steps in which every row draws. Where they take turns, what lies between two of them is a part of the later one.
void Speculation::learn_cost(const StepPlan& plan, Clock::time_point now, double seconds) {
  const double since_latest = std::chrono::duration<double>(now - std::exchange(latest_end_, now)).count();
  std::int64_t num_draws = 0;
  for (const SequenceStep& part : plan.sequences) num_draws += part.num_draws;
  if (num_draws != plan.num_rows()) return;
  const bool in_turns = takes_turns_ || !runs_ahead_;
  const bool follows = in_turns && since_latest < 1.5 * seconds;  // nothing was waited for
  cost_[in_turns ? 1 : 0].learn(num_draws, follows ? since_latest : seconds);
}

void Speculation::count(const StepPlan& plan, const StepTokens& drawn) {
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& part = plan.sequences[i];
    if (part.num_drafts() == 0 || !live_.contains(part.id)) continue;
    const auto num_accepted = static_cast<std::size_t>(drawn.num_accepted(i));
    ++counts_.num_drafts;
    counts_.draft_tokens += static_cast<std::uint64_t>(part.num_drafts());
    counts_.accepted_tokens += num_accepted;
    for (std::size_t k = 0; k < num_accepted; ++k) ++counts_.accepted_at[k];
  }
}

// How the predictions of the sequence's new tokens did, as far as those before them held.
void Speculation::check_predictions(Speculated& sequence, std::span<const std::int32_t> tokens) {
  if (!sequence.has_place) return;
  const NgramText& source = sequence.is_own ? sequence.text : sequence.kept->text;
  bool held = true;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::int64_t place = sequence.place++;
    if (!source.has(place) || source.at(place) == NgramText::kGap) {
      sequence.has_place = false;
      return;
    }
    const bool holds = source.at(place) == tokens[i];
    sequence.rate.note(holds, kPlaceMemory);
    if (held && sequence.length < kLengths.size()) rates_[sequence.length].note(holds, kLengthMemory);
    if (held) hope(sequence.hoped).note(holds, kHopeMemory);
    held &= holds;
    sequence.num_misses = holds ? 0 : sequence.num_misses + 1;
  }
  if (sequence.num_misses >= kMostMisses) sequence.has_place = false;
}

// Goes on at its place, unless its latest tokens are found somewhere that promises more.
void Speculation::predict(Speculated& sequence) {
  const NgramText::Match own = sequence.text.find(sequence.text);
  const NgramText::Match kept = sequence.kept->text.find(sequence.text);
  const bool is_own = own.length >= kept.length;
  const NgramText::Match& match = is_own ? own : kept;
  sequence.length = kLengths.size();
  sequence.hoped = sequence.has_place ? sequence.rate.value : 0;
  if (match.length > 0) {
    const auto length =
        static_cast<std::size_t>(std::ranges::upper_bound(kLengths, match.length) - kLengths.begin() - 1);
    const double promised = rates_[length].value;
    const bool is_there = sequence.has_place && sequence.is_own == is_own && sequence.place == match.next;
    if (is_there || promised > sequence.hoped) {
      if (!is_there) {
        sequence.has_place = true;
        sequence.is_own = is_own;
        sequence.place = match.next;
        sequence.num_misses = 0;
        sequence.rate = {.value = promised};
      }
      sequence.length = length;
      sequence.hoped = std::max(promised, sequence.rate.value);
    }
  }
  sequence.expected = hope(sequence.hoped).value;
  sequence.predicted.clear();
  if (!sequence.has_place) return;
  const NgramText& source = sequence.is_own ? sequence.text : sequence.kept->text;
  for (std::int64_t place = sequence.place; source.has(place) && sequence.predicted.size() < kMostDrafts; ++place) {
    if (source.at(place) == NgramText::kGap) break;
    sequence.predicted.push_back(source.at(place));
  }
}

void Speculation::propose() {
  if (!is_on_ || live_.empty()) return;
  const Timed timed(counts_.seconds);
  const bool is_idle = scheduler_.num_in_flight() == 0;
  candidates_.clear();
  for (auto& [id, sequence] : live_) {
    if (sequence.predicted.empty() || sequence.expected < kLeastChance) continue;
    const Sequence& scheduled = scheduler_.sequence(id);
    if (!scheduled.is_running || scheduled.num_uncomputed() != 1) continue;
    double chance = 1;
    for (std::size_t i = 0; i < sequence.predicted.size(); ++i) {
      chance *= sequence.expected;
      if (chance < kLeastChance) break;
      candidates_.push_back({chance, id, i});
    }
  }
  const std::size_t count = candidates_.empty() ? 0 : choose(scheduler_.num_running());
  takes_turns_ = runs_ahead_ && count > 0;
  if (!is_idle || count == 0) return;
  // A draft is never likelier than the one before it, so what was chosen of a sequence are its first ones.
  std::unordered_map<SequenceId, std::size_t> widths;
  for (std::size_t i = 0; i < count; ++i) ++widths[candidates_[i].id];
  for (const auto& [id, width] : widths) {
    scheduler_.propose(id, std::span(live_.at(id).predicted).first(width));
  }
}

// How many of the likeliest candidates, which come first then, make the most tokens per second beside one each for all
// that run.
std::size_t Speculation::choose(std::int64_t num_running) {
  std::ranges::sort(candidates_, [](const Candidate& a, const Candidate& b) {
    return a.chance != b.chance ? a.chance > b.chance : a.id != b.id ? a.id < b.id : a.index < b.index;
  });
  const double without = cost(num_running, false);
  if (without == 0) return 0;  // nothing was measured
  double tokens = static_cast<double>(num_running);
  double best = kLeastGain * tokens / without;
  std::size_t count = 0;
  const std::size_t most = std::min<std::size_t>(candidates_.size(), kMostStepDrafts);
  for (std::size_t i = 0; i < most; ++i) {
    tokens += candidates_[i].chance;
    const double seconds = cost(num_running + static_cast<std::int64_t>(i) + 1, true);
    const double rate = tokens / (seconds > 0 ? seconds : without);
    if (rate > best) {
      best = rate;
      count = i + 1;
    }
  }
  return count;
}

}  // namespace minisgl
