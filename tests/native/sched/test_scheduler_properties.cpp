// The scheduler under random submits, finishes and aborts with tiny caches, watched through its plans alone; with each
// step complete before the next is planned, and with a second step planned while the first is in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "sched/scheduler.h"

namespace minisgl {
namespace {

// Plays a rank: follows the plans, keeps the page tables, and verifies what every plan promises. Up to `depth` steps
// are in flight when one more is planned.
class Rank {
 public:
  Rank(const SchedulerOptions& options, std::mt19937& random, std::size_t depth = 0)
      : options_(options), random_(random), depth_(depth) {}

  void submit(Scheduler& scheduler, SequenceId id) {
    const std::int64_t capacity = options_.num_pages * options_.page_size;
    const std::int64_t prompt_len = 1 + random_() % std::min<std::int64_t>(capacity, 40);
    const std::int64_t max_tokens = random_() % std::min<std::int64_t>(capacity - prompt_len + 1, 60);
    Known known{.max_len = prompt_len + max_tokens, .prompt_len = prompt_len, .score_prompt = random_() % 4 == 0};
    for (std::int64_t i = 0; i < prompt_len; ++i) known.tokens.push_back(static_cast<std::int32_t>(random_() % 1000));
    scheduler.add({id, known.tokens, max_tokens, known.score_prompt});
    live_.emplace(id, known);
  }

  void forget(SequenceId id) { live_.erase(id); }
  std::vector<SequenceId> ids() const {
    std::vector<SequenceId> ids;
    for (const auto& [id, known] : live_) ids.push_back(id);
    return ids;
  }

  // A turn of the engine: plans a step, and once as many are in flight as may be, completes the oldest and ends the
  // sequences that are done.
  void step(Scheduler& scheduler) {
    const std::uint64_t preemptions = scheduler.num_preemptions();
    const StepPlan& plan = scheduler.plan();
    if (!plan.empty()) {
      ASSERT_TRUE(in_flight_.empty() || scheduler.num_preemptions() == preemptions);
      ASSERT_LE(plan.num_rows(), options_.max_batch_tokens);
      verify_rows(plan);
      verify_logits(plan);
      verify_order(scheduler, plan);
      num_ahead_ += in_flight_.empty() ? 0 : 1;
      launch(plan);
    } else {
      ASSERT_TRUE(live_.empty() || !in_flight_.empty());  // progress: some row is computed
    }
    scheduler.check();
    if (in_flight_.size() > (plan.empty() ? 0 : depth_)) finish_step(scheduler);
  }

  std::int64_t num_ahead() const { return num_ahead_; }  // steps planned while another was in flight

 private:
  struct Known {
    std::vector<std::int32_t> tokens = {};
    std::vector<PageId> table = {};
    std::int64_t num_computed = 0, max_len, prompt_len;
    std::int64_t num_scored = 0;
    bool score_prompt, started = false;

    std::int64_t len() const { return static_cast<std::int64_t>(tokens.size()); }
  };
  static constexpr std::int32_t kUnknown = -1000000;  // a token that a step in flight draws

  // A step as a device keeps it.
  struct Flight {
    StepPlan plan;
    std::vector<std::int64_t> new_tokens;  // [plan.sequences] where the drawn token goes
    std::set<PageId> pages;                // that it may write to
  };

  void verify_rows(const StepPlan& plan) {
    std::int32_t next_row = 0;
    std::set<SequenceId> seen;
    for (const SequenceStep& step : plan.sequences) {
      ASSERT_TRUE(live_.contains(step.id));
      ASSERT_TRUE(seen.insert(step.id).second);
      Known& known = live_.at(step.id);
      ASSERT_EQ(step.first_row, next_row);
      ASSERT_GE(step.num_rows, 1);
      next_row += step.num_rows;
      if (step.num_kept_pages == 0) known.table.clear(), known.num_computed = 0;  // new, or preempted since
      // Each token exactly once between preemptions.
      ASSERT_EQ(step.start_position, known.num_computed);
      ASSERT_EQ(step.num_kept_pages, static_cast<std::int32_t>(known.table.size()));
      for (int i = 0; i < step.num_new_pages; ++i) known.table.push_back(plan.new_pages[step.first_new_page + i]);
      for (int i = 0; i < step.num_rows; ++i) {
        const std::int32_t token = known.tokens[step.start_position + i];
        if (token != kUnknown) {
          ASSERT_EQ(plan.tokens[step.first_row + i], token);
          continue;
        }
        // What the step before this one draws for the same sequence.
        ASSERT_EQ(in_flight_.size(), 1u);
        const StepPlan& before = in_flight_.front().plan;
        const LogitTarget& target = before.targets.at(-1 - plan.tokens[step.first_row + i]);
        ASSERT_EQ(target.token, LogitTarget::kSample);
        ASSERT_EQ(before.sequences[target.sequence].id, step.id);
      }
      known.num_computed += step.num_rows;
      ASSERT_GE(static_cast<std::int64_t>(known.table.size()) * options_.page_size, known.num_computed);
      ASSERT_EQ(step.samples, known.num_computed == known.len() && known.len() < known.max_len);
      // Nobody is planned past its end.
      ASSERT_LT(step.start_position, std::max(known.prompt_len, known.max_len - 1));
    }
    ASSERT_EQ(next_row, plan.num_rows());
  }

  void verify_logits(const StepPlan& plan) {
    ASSERT_EQ(plan.logit_rows.size(), plan.targets.size());
    ASSERT_TRUE(std::is_sorted(plan.logit_rows.begin(), plan.logit_rows.end()));
    std::int64_t prompt_rows = 0;
    std::set<std::int32_t> sampling;
    for (std::size_t i = 0; i < plan.targets.size(); ++i) {
      const SequenceStep& step = plan.sequences[plan.targets[i].sequence];
      Known& known = live_.at(step.id);
      const std::int32_t offset = plan.logit_rows[i] - step.first_row;
      ASSERT_TRUE(offset >= 0 && offset < step.num_rows);
      if (plan.targets[i].token == LogitTarget::kSample) {
        ASSERT_TRUE(step.samples && offset == step.num_rows - 1);
        sampling.insert(plan.targets[i].sequence);
        continue;
      }
      ASSERT_TRUE(known.score_prompt);
      ASSERT_EQ(step.start_position + offset, known.num_scored);  // each prompt row once, preempted or not
      ASSERT_EQ(plan.targets[i].token, known.tokens[++known.num_scored]);
      ++prompt_rows;
    }
    ASSERT_LE(prompt_rows, options_.max_prompt_logits);
    const auto samples = [](const SequenceStep& step) { return step.samples; };
    ASSERT_EQ(static_cast<std::ptrdiff_t>(sampling.size()),
              std::count_if(plan.sequences.begin(), plan.sequences.end(), samples));
  }

  void verify_order(const Scheduler& scheduler, const StepPlan& plan) {
    // Who is running arrived before everybody who waits, and ids grow with arrival here.
    SequenceId last = 0;
    for (const auto* list : {&scheduler.running(), &scheduler.waiting()}) {
      for (const Sequence& sequence : *list) {
        ASSERT_GT(sequence.id, last);
        last = sequence.id;
      }
    }
    // No page is in two tables of running sequences.
    std::set<PageId> pages;
    std::size_t count = 0;
    for (const Sequence& sequence : scheduler.running()) {
      const auto& table = live_.at(sequence.id).table;
      pages.insert(table.begin(), table.end());
      count += table.size();
    }
    ASSERT_EQ(pages.size(), count);
    // No page is given away while a step in flight may write to it.
    for (const Flight& flight : in_flight_) {
      for (const PageId page : plan.new_pages) ASSERT_FALSE(flight.pages.contains(page)) << "page " << page;
    }
    // First those that lack only their latest token, then the rest; earlier arrivals first in both.
    bool first_group = true, chunk_before = false;
    last = 0;
    for (const SequenceStep& step : plan.sequences) {
      const Known& known = live_.at(step.id);
      const bool latest_only = step.num_rows == 1 && known.num_computed == known.len();
      ASSERT_FALSE(chunk_before && latest_only && step.start_position >= known.prompt_len);  // decode after prefill
      chunk_before = chunk_before || step.num_rows > 1;
      if (step.id < last) {
        ASSERT_TRUE(first_group);
        first_group = false;
      }
      last = step.id;
    }
  }

  void launch(const StepPlan& plan) {
    Flight& flight = in_flight_.emplace_back();
    flight.plan = plan;
    for (const SequenceStep& step : plan.sequences) {
      Known& known = live_.at(step.id);
      flight.new_tokens.push_back(known.len());
      if (step.samples) known.tokens.push_back(kUnknown);
      flight.pages.insert(known.table.begin(), known.table.end());
    }
  }

  void finish_step(Scheduler& scheduler) {
    const Flight flight = std::move(in_flight_.front());
    in_flight_.pop_front();
    ASSERT_EQ(scheduler.oldest().tokens, flight.plan.tokens);
    std::vector<std::int32_t> sampled;
    std::vector<SequenceId> ended;
    for (std::size_t i = 0; i < flight.plan.sequences.size(); ++i) {
      const SequenceStep& step = flight.plan.sequences[i];
      if (step.samples) sampled.push_back(static_cast<std::int32_t>(random_() % 1000));
      const auto place = live_.find(step.id);
      if (place == live_.end()) continue;  // it ended since
      Known& known = place->second;
      const std::int64_t length = flight.new_tokens[i] + (step.samples ? 1 : 0);
      if (step.samples) known.tokens[flight.new_tokens[i]] = sampled.back();
      const bool stopped = step.samples && random_() % 50 == 0;
      if (stopped || (step.start_position + step.num_rows >= known.prompt_len && length == known.max_len)) {
        ASSERT_EQ(known.num_scored, known.score_prompt ? known.prompt_len - 1 : 0);
        ended.push_back(step.id);
      }
    }
    scheduler.complete(sampled);
    scheduler.check();
    for (const SequenceId id : ended) {
      scheduler.remove(id);
      live_.erase(id);
    }
    scheduler.check();
  }

  SchedulerOptions options_;
  std::mt19937& random_;
  std::size_t depth_;
  std::map<SequenceId, Known> live_;
  std::deque<Flight> in_flight_;
  std::int64_t num_ahead_ = 0;
};

class SchedulerProperties : public testing::TestWithParam<unsigned> {};

TEST_P(SchedulerProperties, HoldUnderRandomUse) {
  std::mt19937 random(GetParam());
  const auto between = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random() % (high - low + 1));
  };
  const SchedulerOptions options{.num_pages = between(1, 24),
                                 .page_size = static_cast<int>(between(1, 8)),
                                 .max_running = between(1, 10),
                                 .max_batch_tokens = between(1, 32),
                                 .max_prompt_logits = between(1, 8)};
  Scheduler scheduler(options);
  Rank rank(options, random, GetParam() % 2);
  SequenceId next_id = 1;
  for (int round = 0; round < 1500; ++round) {
    if (random() % 4 == 0 && scheduler.num_waiting() < 20) rank.submit(scheduler, next_id++);
    if (random() % 25 == 0) {
      const std::vector<SequenceId> ids = rank.ids();
      if (!ids.empty()) {
        const SequenceId id = ids[random() % ids.size()];
        scheduler.remove(id);
        rank.forget(id);
        scheduler.check();
      }
    }
    rank.step(scheduler);
    if (HasFatalFailure()) return;
  }
  // Everything left finishes: no livelock.
  for (int round = 0; scheduler.has_work() || scheduler.num_in_flight() > 0; ++round) {
    ASSERT_LT(round, 100000);
    rank.step(scheduler);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(scheduler.pages().num_free(), options.num_pages);
  EXPECT_TRUE(rank.ids().empty());
  if (GetParam() % 2 == 1) {
    EXPECT_GT(rank.num_ahead(), 100);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerProperties, testing::Range(0u, 80u));

TEST(SchedulerProperties, PreemptionHappensInThem) {
  // The property would be idle if these caches never ran out.
  for (const std::size_t depth : {0, 1}) {
    std::mt19937 random(5);
    const SchedulerOptions options{.num_pages = 12, .page_size = 4, .max_running = 8, .max_batch_tokens = 32};
    Scheduler scheduler(options);
    Rank rank(options, random, depth);
    for (SequenceId id = 1; id <= 100; ++id) rank.submit(scheduler, id);
    while (scheduler.has_work()) {
      rank.step(scheduler);
      ASSERT_FALSE(HasFatalFailure());
    }
    EXPECT_GT(scheduler.num_preemptions(), 10u);
  }
}

}  // namespace
}  // namespace minisgl
