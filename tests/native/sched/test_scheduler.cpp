// The scheduler by example: what goes into a step, in which order, and who gives way when pages run out.
#include <gtest/gtest.h>

#include <numeric>

#include "core/error.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

std::vector<std::int32_t> prompt_of(std::int64_t length) {
  std::vector<std::int32_t> prompt(length);
  std::iota(prompt.begin(), prompt.end(), 100);
  return prompt;
}

NewSequence make(SequenceId id, std::int64_t prompt_len, std::int64_t max_tokens, bool score_prompt = false) {
  return {.id = id, .prompt = prompt_of(prompt_len), .max_tokens = max_tokens, .score_prompt = score_prompt};
}

// Ids and row counts of the step, like {{1, 4}, {2, 1}}.
std::vector<std::pair<SequenceId, int>> shape(const StepPlan& plan) {
  std::vector<std::pair<SequenceId, int>> result;
  for (const SequenceStep& step : plan.sequences) result.emplace_back(step.id, step.num_rows);
  return result;
}

// Answers every sampling sequence with token 7.
void complete(Scheduler& scheduler, const StepPlan& plan) {
  std::vector<std::int32_t> sampled;
  for (const SequenceStep& step : plan.sequences) {
    if (step.samples) sampled.push_back(7);
  }
  scheduler.complete(sampled);
  scheduler.check();
}

using Shape = std::vector<std::pair<SequenceId, int>>;

TEST(Scheduler, IsEmptyWithoutWork) {
  Scheduler scheduler({.num_pages = 4});
  EXPECT_TRUE(scheduler.plan().empty());
  EXPECT_FALSE(scheduler.has_work());
}

TEST(Scheduler, PrefillsThenDecodes) {
  Scheduler scheduler({.num_pages = 4, .page_size = 4});
  scheduler.add(make(1, 5, 2));
  const StepPlan& prefill = scheduler.plan();
  EXPECT_EQ(shape(prefill), (Shape{{1, 5}}));
  EXPECT_EQ(prefill.tokens, prompt_of(5));
  EXPECT_EQ(prefill.new_pages, (std::vector<PageId>{0, 1}));
  EXPECT_EQ(prefill.logit_rows, (std::vector<std::int32_t>{4}));
  EXPECT_EQ(prefill.targets[0].token, LogitTarget::kSample);
  complete(scheduler, prefill);

  const StepPlan& decode = scheduler.plan();
  EXPECT_EQ(shape(decode), (Shape{{1, 1}}));
  EXPECT_EQ(decode.tokens, (std::vector<std::int32_t>{7}));
  EXPECT_EQ(decode.sequences[0].start_position, 5);
  EXPECT_EQ(decode.sequences[0].num_kept_pages, 2);
  EXPECT_EQ(decode.sequences[0].num_new_pages, 0);
  complete(scheduler, decode);

  EXPECT_EQ(scheduler.sequence(1).len(), 7);
  scheduler.remove(1);
  EXPECT_EQ(scheduler.pages().num_free(), 4);
  EXPECT_FALSE(scheduler.has_work());
}

TEST(Scheduler, DecodesFirstAndFillsUpWithChunks) {
  Scheduler scheduler({.num_pages = 100, .page_size = 4, .max_batch_tokens = 8});
  scheduler.add(make(1, 3, 9));
  complete(scheduler, scheduler.plan());
  scheduler.add(make(2, 10, 9));
  scheduler.add(make(3, 10, 9));

  const StepPlan& first = scheduler.plan();
  EXPECT_EQ(shape(first), (Shape{{1, 1}, {2, 7}}));
  EXPECT_TRUE(first.sequences[0].samples);
  EXPECT_FALSE(first.sequences[1].samples);  // its prompt is not complete
  complete(scheduler, first);

  const StepPlan& second = scheduler.plan();
  EXPECT_EQ(shape(second), (Shape{{1, 1}, {2, 3}, {3, 4}}));
  EXPECT_EQ(second.sequences[1].start_position, 7);
  EXPECT_TRUE(second.sequences[1].samples);
  complete(scheduler, second);

  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}, {2, 1}, {3, 6}}));
}

TEST(Scheduler, RunsAtMostMaxRunning) {
  Scheduler scheduler({.num_pages = 100, .page_size = 4, .max_running = 2});
  for (SequenceId id : {1, 2, 3}) scheduler.add(make(id, 2, 4));
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{1, 2}, {2, 2}}));
  EXPECT_EQ(scheduler.num_waiting(), 1);
  complete(scheduler, plan);
  scheduler.remove(1);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 1}, {3, 2}}));
}

TEST(Scheduler, KeepsTheOrderOfArrival) {
  // The second does not fit beside the first; the third would, but does not overtake.
  Scheduler scheduler({.num_pages = 10, .page_size = 1});
  scheduler.add(make(1, 5, 1));
  scheduler.add(make(2, 8, 1));
  scheduler.add(make(3, 1, 1));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 5}}));
}

TEST(Scheduler, PreemptsTheLatestAndComputesItAgain) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2});
  scheduler.add(make(1, 4, 12));
  scheduler.add(make(2, 4, 8));
  std::int64_t steps = 0;
  while (scheduler.num_preemptions() == 0) {
    ASSERT_LT(++steps, 20);
    complete(scheduler, scheduler.plan());
  }
  ASSERT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.running().front().id, 1u);
  const Sequence& preempted = scheduler.waiting().front();
  const std::int64_t length = preempted.len();
  EXPECT_GT(length, 4);  // it keeps what it generated
  EXPECT_EQ(preempted.num_computed, 0);
  EXPECT_TRUE(preempted.pages.empty());

  scheduler.remove(1);
  const StepPlan& again = scheduler.plan();
  ASSERT_EQ(shape(again), (Shape{{2, static_cast<int>(length)}}));
  EXPECT_EQ(again.sequences[0].start_position, 0);
  EXPECT_EQ(again.sequences[0].num_kept_pages, 0);
  EXPECT_EQ(again.tokens.back(), 7);
  EXPECT_TRUE(again.sequences[0].samples);
}

TEST(Scheduler, ASequenceThatFillsTheCacheFinishesAlone) {
  Scheduler scheduler({.num_pages = 4, .page_size = 2});
  scheduler.add(make(1, 3, 5));
  for (int step = 0; step < 5; ++step) complete(scheduler, scheduler.plan());
  EXPECT_EQ(scheduler.sequence(1).len(), 8);
  EXPECT_EQ(scheduler.num_preemptions(), 0u);
}

TEST(Scheduler, WantsNoLogitsWhereNothingIsGenerated) {
  Scheduler scheduler({.num_pages = 4, .page_size = 4});
  scheduler.add(make(1, 3, 0));
  const StepPlan& plan = scheduler.plan();
  EXPECT_TRUE(plan.logit_rows.empty());
  EXPECT_FALSE(plan.sequences[0].samples);
  complete(scheduler, plan);
  EXPECT_EQ(scheduler.sequence(1).num_uncomputed(), 0);
  scheduler.remove(1);
}

TEST(Scheduler, ScoresPromptsInBoundedChunks) {
  Scheduler scheduler({.num_pages = 100, .page_size = 4, .max_prompt_logits = 4});
  scheduler.add(make(1, 10, 1, true));
  scheduler.add(make(2, 6, 1));

  const StepPlan& first = scheduler.plan();
  EXPECT_EQ(shape(first), (Shape{{1, 4}, {2, 6}}));  // the other's prompt is not held back
  EXPECT_EQ(first.logit_rows, (std::vector<std::int32_t>{0, 1, 2, 3, 9}));
  // Each row's target is the token after it, also across the chunk's end.
  for (int row = 0; row < 4; ++row) EXPECT_EQ(first.targets[row].token, prompt_of(10)[row + 1]);
  EXPECT_EQ(first.targets[4].sequence, 1);
  complete(scheduler, first);
  scheduler.remove(2);

  const StepPlan& second = scheduler.plan();
  EXPECT_EQ(shape(second), (Shape{{1, 4}}));
  complete(scheduler, second);
  const StepPlan& third = scheduler.plan();
  EXPECT_EQ(shape(third), (Shape{{1, 2}}));
  EXPECT_EQ(third.logit_rows, (std::vector<std::int32_t>{0, 1}));
  EXPECT_EQ(third.targets[0].token, prompt_of(10)[9]);
  EXPECT_EQ(third.targets[1].token, LogitTarget::kSample);
}

TEST(Scheduler, RefusesWhatItsCallerMustNotDo) {
  Scheduler scheduler({.num_pages = 2, .page_size = 2});
  EXPECT_THROW(scheduler.add(make(1, 0, 1)), CheckError);
  EXPECT_THROW(scheduler.add(make(1, 3, 2)), CheckError);  // 5 tokens never fit 4
  scheduler.add(make(1, 3, 1));
  EXPECT_THROW(scheduler.add(make(1, 1, 1)), CheckError);
  EXPECT_THROW(scheduler.remove(2), CheckError);
  EXPECT_THROW(scheduler.complete({}), CheckError);
  EXPECT_THROW(scheduler.oldest(), CheckError);
  scheduler.plan();
  EXPECT_THROW(scheduler.complete({}), CheckError);  // one token is missing
  scheduler.remove(1);
  EXPECT_THROW(scheduler.remove(1), CheckError);
}

TEST(Scheduler, RemovesFromTheQueue) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2, .max_running = 1});
  for (SequenceId id : {1, 2, 3}) scheduler.add(make(id, 2, 2));
  complete(scheduler, scheduler.plan());
  scheduler.remove(2);
  scheduler.remove(1);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{3, 2}}));
}

}  // namespace
}  // namespace minisgl
