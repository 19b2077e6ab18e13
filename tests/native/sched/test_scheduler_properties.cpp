// The scheduler under random submits, finishes and aborts with tiny caches, watched through its plans alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "sched/scheduler.h"

namespace minisgl {
namespace {

// Plays a rank: follows the plans, keeps the page tables, and verifies what every plan promises.
class Rank {
 public:
  Rank(const SchedulerOptions& options, std::mt19937& random) : options_(options), random_(random) {}

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

  // Runs one step and ends the sequences that are complete.
  void step(Scheduler& scheduler) {
    const StepPlan& plan = scheduler.plan();
    if (live_.empty()) {
      EXPECT_TRUE(plan.empty());
      return;
    }
    ASSERT_FALSE(plan.empty());  // progress: some row is computed in every step
    ASSERT_LE(plan.num_rows(), options_.max_batch_tokens);
    verify_rows(plan);
    verify_logits(plan);
    verify_order(scheduler, plan);
    finish_step(scheduler, plan);
  }

 private:
  struct Known {
    std::vector<std::int32_t> tokens = {};
    std::vector<PageId> table = {};
    std::int64_t num_computed = 0, max_len, prompt_len;
    std::int64_t num_scored = 0;
    bool score_prompt, started = false;
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
        ASSERT_EQ(plan.tokens[step.first_row + i], known.tokens[step.start_position + i]);
      }
      known.num_computed += step.num_rows;
      ASSERT_GE(static_cast<std::int64_t>(known.table.size()) * options_.page_size, known.num_computed);
      const bool complete = known.num_computed == static_cast<std::int64_t>(known.tokens.size());
      ASSERT_EQ(step.samples, complete && known.num_computed < known.max_len);
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
    // First those that lack only their latest token, then the rest; earlier arrivals first in both.
    bool first_group = true, chunk_before = false;
    last = 0;
    for (const SequenceStep& step : plan.sequences) {
      const Known& known = live_.at(step.id);
      const bool latest_only =
          step.num_rows == 1 && known.num_computed == static_cast<std::int64_t>(known.tokens.size());
      ASSERT_FALSE(chunk_before && latest_only && step.start_position >= known.prompt_len);  // decode after prefill
      chunk_before = chunk_before || step.num_rows > 1;
      if (step.id < last) {
        ASSERT_TRUE(first_group);
        first_group = false;
      }
      last = step.id;
    }
  }

  void finish_step(Scheduler& scheduler, const StepPlan& plan) {
    std::vector<std::int32_t> sampled;
    std::vector<SequenceId> complete;
    for (const SequenceStep& step : plan.sequences) {
      Known& known = live_.at(step.id);
      if (step.samples) {
        sampled.push_back(static_cast<std::int32_t>(random_() % 1000));
        known.tokens.push_back(sampled.back());
      }
      const auto length = static_cast<std::int64_t>(known.tokens.size());
      const bool stopped = step.samples && random_() % 50 == 0;
      if (stopped || (known.num_computed >= known.prompt_len && length == known.max_len)) {
        ASSERT_EQ(known.num_scored, known.score_prompt ? known.prompt_len - 1 : 0);
        complete.push_back(step.id);
      }
    }
    scheduler.complete(sampled);
    for (const SequenceId id : complete) {
      scheduler.remove(id);
      live_.erase(id);
    }
    scheduler.check();
  }

  SchedulerOptions options_;
  std::mt19937& random_;
  std::map<SequenceId, Known> live_;
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
  Rank rank(options, random);
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
  for (int round = 0; scheduler.has_work(); ++round) {
    ASSERT_LT(round, 100000);
    rank.step(scheduler);
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(scheduler.pages().num_free(), options.num_pages);
  EXPECT_TRUE(rank.ids().empty());
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerProperties, testing::Range(0u, 40u));

TEST(SchedulerProperties, PreemptionHappensInThem) {
  // The property would be idle if these caches never ran out.
  std::uint64_t preemptions = 0;
  std::mt19937 random(5);
  const SchedulerOptions options{.num_pages = 12, .page_size = 4, .max_running = 8, .max_batch_tokens = 32};
  Scheduler scheduler(options);
  Rank rank(options, random);
  for (SequenceId id = 1; id <= 100; ++id) rank.submit(scheduler, id);
  while (scheduler.has_work()) {
    rank.step(scheduler);
    ASSERT_FALSE(HasFatalFailure());
    preemptions = scheduler.num_preemptions();
  }
  EXPECT_GT(preemptions, 10u);
}

}  // namespace
}  // namespace minisgl
