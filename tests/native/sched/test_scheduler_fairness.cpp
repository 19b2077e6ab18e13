// A machine that is full, and who gives way to a newcomer there.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "sched/scheduler.h"

namespace minisgl {
namespace {

// Plays the engine: requests that never stop by themselves, a step after the other.
struct Machine {
  explicit Machine(const SchedulerOptions& options) : scheduler(options) {}

  SequenceId submit(std::int64_t prompt_len, std::int64_t max_tokens, const Standing& standing,
                    bool has_counts = false) {
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(prompt_len), 5);
    prompt[0] = static_cast<std::int32_t>(++last_id);  // they share nothing
    scheduler.add({.id = last_id,
                   .prompt = std::move(prompt),
                   .max_tokens = max_tokens,
                   .has_counts = has_counts,
                   .standing = standing,
                   .arrived = now});
    return last_id;
  }
  // Returns the ids that the step computed.
  std::vector<SequenceId> step() {
    now += std::chrono::milliseconds(20);
    const StepPlan& plan = scheduler.plan(now);
    std::vector<SequenceId> ids;
    std::vector<std::int32_t> drawn;
    rows.clear();
    for (const SequenceStep& part : plan.sequences) {
      rows[part.id] = part.num_rows;
      ids.push_back(part.id);
      if (part.num_draws > 0) drawn.push_back(7);
    }
    StepTokens tokens;
    accept_drafts(plan, drawn, tokens);
    scheduler.complete(tokens);
    for (const SequenceId id : ids) {
      if (!scheduler.sequence(id).complete()) continue;
      scheduler.remove(id);
      ended.insert(id);
    }
    scheduler.check();
    return ids;
  }
  // Of the latest step.
  std::int64_t rows_of(SequenceId id) const { return rows.contains(id) ? rows.at(id) : 0; }
  bool is_done(SequenceId id) const { return ended.contains(id); }
  bool is_running(SequenceId id) const { return scheduler.sequence(id).is_running; }
  // Steps until the sequence has its first token.
  int steps_to_first_token(SequenceId id) {
    for (int steps = 1; steps < 10000; ++steps) {
      const std::vector<SequenceId> ids = step();
      if (std::ranges::find(ids, id) != ids.end()) return steps;
    }
    return 10000;
  }

  Scheduler scheduler;
  SequenceId last_id = 0;
  std::map<SequenceId, std::int64_t> rows = {};
  std::set<SequenceId> ended = {};
  FairQueue::Time now = {};
};

SchedulerOptions few_places() {
  return {.num_pages = 10000, .page_size = 16, .max_running = 16, .max_batch_tokens = 128};
}

SchedulerOptions few_pages() {
  return {.num_pages = 200, .page_size = 16, .max_running = 256, .max_batch_tokens = 512};
}

TEST(SchedulerFairness, ANewcomersShortRequestDoesNotWaitForTwoHundredLongOnes) {
  for (const SchedulerOptions& options : {few_places(), few_pages()}) {
    for (const Standing& newcomer : {Standing{.share = 1}, Standing{.share = 0, .user = 9}}) {
      Machine machine(options);
      for (int i = 0; i < 200; ++i) machine.submit(100, 400, {});
      for (int i = 0; i < 100; ++i) machine.step();
      ASSERT_LT(machine.scheduler.num_running(), 200);
      for (int request = 0; request < 5; ++request) {
        const SequenceId id = machine.submit(50, 8, newcomer);
        EXPECT_EQ(machine.step(), std::vector<SequenceId>{id});  // alone
        EXPECT_GT(machine.step().size(), 4u);
        for (int i = 0; i < 20; ++i) machine.step();
      }
      while (machine.scheduler.has_work()) machine.step();
    }
  }
}

TEST(SchedulerFairness, ANewcomerHasAStepOfItsOwnWhereManyRunAndNobodyElseWaits) {
  for (const int num_running : {4, 8, 200}) {
    Machine machine({.num_pages = 10000, .page_size = 16, .max_running = 256, .max_batch_tokens = 2048});
    for (int i = 0; i < num_running; ++i) machine.submit(10, 400, {});
    for (int i = 0; i < 10; ++i) machine.step();
    ASSERT_EQ(machine.scheduler.num_running(), num_running);
    machine.submit(50, 8, {.share = 1});
    EXPECT_EQ(machine.step().size(), num_running < 8 ? num_running + 1u : 1u);
    EXPECT_EQ(machine.step().size(), num_running + 1u);
  }
}

TEST(SchedulerFairness, ThoseThatDecodeGoOnBesideNewcomersWithoutEnd) {
  Machine machine(few_places());
  for (int i = 0; i < 200; ++i) machine.submit(100, 400, {});
  for (int i = 0; i < 100; ++i) machine.step();
  int steps_with_others = 0;
  for (std::uint64_t user = 1; user <= 200; ++user) {
    machine.submit(20, 1, {.share = 1, .user = user});
    steps_with_others += machine.step().size() > 1;
  }
  EXPECT_GE(steps_with_others, 180);  // of 200; a step takes 20 ms
}

TEST(SchedulerFairness, EqualsWaitForTheirTurn) {
  for (const SchedulerOptions& options : {few_places(), few_pages()}) {
    Machine machine(options);
    for (int i = 0; i < 200; ++i) machine.submit(100, 400, {});
    for (int i = 0; i < 100; ++i) machine.step();
    const std::uint64_t preemptions = machine.scheduler.num_preemptions();
    const SequenceId last = machine.submit(50, 8, {});
    EXPECT_GT(machine.steps_to_first_token(last), 1000);
    if (options.num_pages == few_places().num_pages) {
      EXPECT_EQ(machine.scheduler.num_preemptions(), preemptions);
    }
  }
}

TEST(SchedulerFairness, SharesThatBothHaveMuchToDoAreServedAlikeAndDoNotPushEachOtherOut) {
  for (const SchedulerOptions& options : {few_places(), few_pages()}) {
    Machine machine(options);
    for (int i = 0; i < 100; ++i) machine.submit(100, 300, {.share = 1});
    for (int i = 0; i < 50; ++i) machine.step();
    for (int i = 0; i < 100; ++i) machine.submit(100, 300, {.share = 2});
    std::int64_t first = 0, second = 0;  // tokens drawn
    std::uint64_t preemptions = machine.scheduler.num_preemptions();
    for (int i = 0; i < 1000; ++i) {
      for (const SequenceId id : machine.step()) (id <= 100 ? first : second) += 1;
    }
    EXPECT_NEAR(static_cast<double>(first) / static_cast<double>(second), 1.0, 0.25) << first << ", " << second;
    preemptions = machine.scheduler.num_preemptions() - preemptions;
    if (options.num_pages == few_places().num_pages) {
      EXPECT_LE(preemptions, 12u);
    }
    while (machine.scheduler.has_work()) machine.step();
  }
}

TEST(SchedulerFairness, WhatWasServedWhileNobodyWaitedIsOwedToNobody) {
  Machine machine(few_places());
  for (int i = 0; i < 16; ++i) machine.submit(10, 2000, {.share = 1});
  for (int i = 0; i < 1000; ++i) machine.step();  // 32,000 weighted tokens, and nobody waits
  for (int i = 0; i < 60; ++i) machine.submit(10, 50, {.share = 2});
  for (int i = 0; i < 60; ++i) machine.submit(10, 50, {.share = 1});
  machine.step();
  machine.step();
  for (const Sequence& sequence : machine.scheduler.running()) {
    const Party& share = sequence.turn.share();
    EXPECT_LT(share.served, 33000u);
    EXPECT_GT(share.served, 31000u);
  }
}

TEST(SchedulerFairness, AHigherClassDisplacesALowerOne) {
  for (const SchedulerOptions& options : {few_places(), few_pages()}) {
    Machine machine(options);
    for (int i = 0; i < 200; ++i) machine.submit(100, 400, {.priority = 5});
    for (int i = 0; i < 100; ++i) machine.step();
    EXPECT_EQ(machine.steps_to_first_token(machine.submit(50, 8, {.priority = 0})), 1);
    EXPECT_EQ(machine.scheduler.running().back().turn.standing.priority, 5);
    while (machine.scheduler.has_work()) machine.step();
  }
}

TEST(SchedulerFairness, TheFirstOfAllStays) {
  Machine machine({.num_pages = 40, .page_size = 4, .max_running = 1, .max_batch_tokens = 32});
  const SequenceId only = machine.submit(10, 100, {.priority = 9, .share = 1});
  machine.step();
  machine.submit(10, 10, {.priority = 0, .share = 2});
  while (machine.scheduler.num_waiting() > 0) {
    if (machine.scheduler.running().size() == 1 && !machine.scheduler.sequence(only).complete()) {
      ASSERT_TRUE(machine.is_running(only) || machine.last_id == 2);
    }
    machine.step();
  }
  EXPECT_EQ(machine.scheduler.num_preemptions(), 0u);
}

TEST(SchedulerFairness, WhereAStepIsInFlightTheNextIsPutOffUntilSomebodyMayGiveWay) {
  Machine machine({.num_pages = 100, .page_size = 16, .max_running = 2, .max_batch_tokens = 64});
  machine.submit(10, 100, {.share = 1});
  machine.submit(10, 100, {.share = 1});
  machine.step();
  const StepPlan& running = machine.scheduler.plan(machine.now);
  const SequenceId newcomer = machine.submit(10, 10, {.share = 2});
  EXPECT_TRUE(machine.scheduler.plan(machine.now).empty());
  EXPECT_EQ(machine.scheduler.num_preemptions(), 0u);
  StepTokens tokens;
  accept_drafts(running, std::vector<std::int32_t>(2, 7), tokens);
  machine.scheduler.complete(tokens);
  const StepPlan& next = machine.scheduler.plan(machine.now);
  EXPECT_EQ(next.sequences.back().id, newcomer);
  ASSERT_EQ(machine.scheduler.preempted().size(), 1u);
  EXPECT_EQ(machine.scheduler.preempted()[0], 2u);
}

TEST(SchedulerFairness, AShortPromptOvertakesTheChunksOfAnotherSharesLongOne) {
  Machine machine({.num_pages = 1000, .page_size = 16, .max_running = 16, .max_batch_tokens = 64});
  machine.submit(2000, 10, {.share = 1});
  for (int i = 0; i < 5; ++i) machine.step();
  const SequenceId newcomer = machine.submit(50, 8, {.share = 2});
  EXPECT_EQ(machine.step(), (std::vector<SequenceId>{newcomer, 1}));
}

// The one that is let in at the cost of others begins in the middle of another's prefill, whose chunks end in the
// middle of pages. Each row of what both begin with is computed by one of them.
TEST(SchedulerFairness, ANewcomerThatIsLetInComputesNoPrefixTwice) {
  constexpr std::int64_t kCommon = 1600, kOwn = 20;
  Machine machine({.num_pages = 10000, .page_size = 16, .max_running = 7, .max_batch_tokens = 64});
  for (int i = 0; i < 6; ++i) machine.submit(10, 400, {});
  for (int i = 0; i < 3; ++i) machine.step();
  const auto submit = [&](const Standing& standing) {
    std::vector<std::int32_t> prompt(kCommon + kOwn, 5);
    std::fill_n(prompt.end() - kOwn, kOwn, static_cast<std::int32_t>(++machine.last_id));
    machine.scheduler.add(
        {.id = machine.last_id, .prompt = prompt, .max_tokens = 4, .standing = standing, .arrived = machine.now});
    return machine.last_id;
  };
  const SequenceId first = submit({.share = 1});
  for (int i = 0; i < 3; ++i) machine.step();
  ASSERT_EQ(machine.scheduler.num_running(), 7);
  ASSERT_NE(machine.scheduler.sequence(first).num_computed % 16, 0);
  const SequenceId second = submit({.share = 2});
  std::int64_t rows = machine.scheduler.sequence(first).num_computed;
  while (machine.scheduler.has_work()) {
    const std::vector<SequenceId> ids = machine.step();
    rows += machine.rows_of(first) + machine.rows_of(second);
    if (machine.is_done(first) && machine.is_done(second)) break;
  }
  EXPECT_GE(machine.scheduler.num_preemptions(), 1u);
  EXPECT_LE(rows, kCommon + 2 * (kOwn + 4) + 3 * 16);
}

SchedulerOptions few_counts() {
  return {.num_pages = 10000, .page_size = 16, .max_running = 16, .max_counting = 3, .max_batch_tokens = 128};
}

TEST(SchedulerFairness, ThoseThatWaitForCountsHoldUpNobodyElse) {
  for (const Standing& other : {Standing{}, Standing{.share = 1}}) {
    Machine machine(few_counts());
    for (int i = 0; i < 10; ++i) machine.submit(10, 300, {}, true);
    for (int i = 0; i < 3; ++i) machine.step();
    EXPECT_EQ(machine.scheduler.num_running(), 3);
    std::vector<SequenceId> others;
    for (int i = 0; i < 13; ++i) others.push_back(machine.submit(10, 20, other));
    for (int i = 0; i < 3; ++i) machine.step();
    EXPECT_EQ(machine.scheduler.num_running(), 16);
    EXPECT_TRUE(std::ranges::all_of(others, [&](SequenceId id) { return machine.is_running(id); }));
    // They go on in the order of their arrival as counts are given back.
    std::vector<SequenceId> begun;
    while (machine.scheduler.has_work()) {
      for (const SequenceId id : machine.step()) {
        if (id <= 10 && std::ranges::find(begun, id) == begun.end()) begun.push_back(id);
      }
      EXPECT_LE(machine.scheduler.queue().num_counting(), 3);
    }
    EXPECT_EQ(begun, (std::vector<SequenceId>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  }
}

TEST(SchedulerFairness, WhoeverHasManyCountsGivesWayToWhoeverHasNone) {
  Machine machine(few_counts());
  for (int i = 0; i < 10; ++i) machine.submit(10, 300, {}, true);
  for (int i = 0; i < 20; ++i) machine.step();
  machine.submit(10, 300, {});
  machine.step();
  const SequenceId newcomer = machine.submit(10, 8, {.share = 1}, true);
  EXPECT_LE(machine.steps_to_first_token(newcomer), 2);
  EXPECT_EQ(machine.scheduler.num_preemptions(), 1u);
  EXPECT_TRUE(machine.is_running(1) && machine.is_running(2) && !machine.is_running(3));
  EXPECT_TRUE(machine.is_running(11));  // it has none that the newcomer could use
  const SequenceId urgent = machine.submit(10, 8, {.priority = -1, .share = 2}, true);
  EXPECT_LE(machine.steps_to_first_token(urgent), 2);
  while (machine.scheduler.has_work()) machine.step();
}

TEST(SchedulerFairness, WhereTheNextWaitsForCountsTheOneBehindItHasItsPlace) {
  SchedulerOptions options = few_counts();
  options.max_counting = 1;
  Machine machine(options);
  machine.submit(10, 300, {}, true);
  for (int i = 0; i < 40; ++i) machine.submit(10, 300, {});
  for (int i = 0; i < 20; ++i) machine.step();
  ASSERT_EQ(machine.scheduler.num_running(), 16);
  const SequenceId counting =
      machine.submit(10, 8, {.share = 1}, true);  // the only one that counts is the first of all
  const SequenceId other = machine.submit(10, 8, {.share = 1});
  EXPECT_LE(machine.steps_to_first_token(other), 2);
  EXPECT_FALSE(machine.is_running(counting));
  while (machine.scheduler.has_work()) machine.step();
}

}  // namespace
}  // namespace minisgl
