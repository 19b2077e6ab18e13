// Drafts without a second model: what stood behind the same tokens before, in a sequence's own text or in those of
// sequences that ended. How many are tried follows from how often they hold and what rows cost.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/ngram_text.h"
#include "engine/options.h"
#include "engine/request.h"
#include "engine/step_rows_cost.h"
#include "sched/scheduler.h"

namespace minisgl {

// The engine thread's. Whatever it proposes, tokens are those that would be drawn anyway (accept_drafts): it decides
// about speed alone. Where EngineConfig::speculate is off, and where no sequence may have drafts, its calls cost
// nothing.
//
// It predicts the next tokens of each sequence whether or not it drafts them, so it always knows how often predictions
// hold. A step gets the drafts that make its tokens per second the most, by StepRowsCost; none where that is less than
// without. On a device that runs ahead drafts need steps one after the other, which costs a little of each: both kinds
// are measured.
class Speculation {
 public:
  static constexpr std::size_t kMostDrafts = SpeculationCounts::kMostDrafts;  // of a sequence in a step
  static constexpr std::int64_t kMostStepDrafts = 64;                         // of all of them
  // What ended sequences leave for others with the same salt and share; those used last are kept.
  static constexpr std::size_t kMostKeys = 32;
  static constexpr std::int64_t kKeptTokens = 1 << 15;

  // `runs_ahead`: steps are planned while others run, unless takes_turns().
  Speculation(const EngineConfig& config, Scheduler& scheduler, bool runs_ahead)
      : is_on_(config.speculate), runs_ahead_(runs_ahead), scheduler_(scheduler) {
    for (std::size_t i = 0; i < hopes_.size(); ++i) hopes_[i].value = (static_cast<double>(i) + 0.5) / 10;
  }

  // Before the sequence enters the scheduler. One whose distribution depends on its output has no drafts.
  void add(SequenceId id, const Request& request);
  // What a step drew, before sequences end by it: it ended now and took so long.
  void learn(const StepPlan& plan, const StepTokens& drawn, std::chrono::steady_clock::time_point now, double seconds);
  // Behind a step, when those that it ended are gone. Only where no step is in flight anything is proposed.
  void propose();
  void end(SequenceId id) {
    if (!live_.empty()) leave(id);
  }

  // Whether the next step begins when the one before has ended and its tokens are known.
  bool takes_turns() const { return takes_turns_; }
  const SpeculationCounts& counts() const { return counts_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Key {
    std::array<std::uint64_t, 2> salt;
    std::int64_t share;
    bool operator==(const Key&) const = default;
  };
  struct Kept {
    Key key;
    NgramText text{kKeptTokens};
  };
  // A share of predictions that held; later ones count more.
  struct Rate {
    double value = 0;
    int count = 4;  // of tokens that `value` stands for, as far as they still count
    void note(bool held, int memory) {
      count = std::min(count + 1, memory);
      value += ((held ? 1.0 : 0.0) - value) / count;
    }
  };
  struct Speculated {
    NgramText text;
    std::shared_ptr<Kept> kept;
    std::int64_t prompt_len;
    // The place that predictions are read from, in its own text or in the kept one; it goes on behind a wrong token.
    bool has_place = false, is_own = false;
    std::int64_t place = 0;
    int num_misses = 0;      // in a row
    Rate rate = {};          // since it is at this place
    std::size_t length = 0;  // of the match that was found there, by kLengths; kLengths.size(): there was none
    double hoped = 0;        // the better of both rates
    double expected = 0;     // that a predicted token holds when those before it do: as such hopes did
    std::vector<std::int32_t> predicted = {};
  };

  // Matches are alike from one of these lengths to the next.
  static constexpr std::array<std::int32_t, 6> kLengths{3, 4, 6, 9, 14, 24};

  std::shared_ptr<Kept> kept_of(const Key& key);
  void leave(SequenceId id);
  Rate& hope(double hoped) { return hopes_[std::min(static_cast<std::size_t>(hoped * 10), hopes_.size() - 1)]; }
  void check_predictions(Speculated& sequence, std::span<const std::int32_t> tokens);
  void predict(Speculated& sequence);
  void learn_cost(const StepPlan& plan, Clock::time_point now, double seconds);
  void count(const StepPlan& plan, const StepTokens& drawn);
  std::size_t choose(std::int64_t num_running);
  double cost(std::int64_t rows, bool in_turns) const { return cost_[in_turns || !runs_ahead_ ? 1 : 0].predict(rows); }

  const bool is_on_, runs_ahead_;
  Scheduler& scheduler_;
  bool takes_turns_ = false;
  std::unordered_map<SequenceId, Speculated> live_;
  std::list<std::shared_ptr<Kept>> kept_;  // those used last come first
  std::array<Rate, kLengths.size()> rates_{{{0.4}, {0.5}, {0.65}, {0.8}, {0.9}, {0.95}}};
  std::array<Rate, 10> hopes_;             // of predictions by what was hoped, in tenths
  std::array<StepRowsCost, 2> cost_ = {};  // of steps that run ahead, and of those that take turns
  Clock::time_point latest_end_ = {};
  SpeculationCounts counts_;

  // A draft that may be tried: how likely it is to be accepted, whose it is, and how many come before it.
  struct Candidate {
    double chance;
    SequenceId id;
    std::size_t index;
  };
  std::vector<Candidate> candidates_;
};

}  // namespace minisgl
