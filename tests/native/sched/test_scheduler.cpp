// The scheduler by example: what goes into a step, in which order, and who gives way when pages run out.
#include <gtest/gtest.h>

#include <numeric>

#include "core/error.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

// Each sequence's begins in its own way.
std::vector<std::int32_t> prompt_of(std::int64_t length, SequenceId id = 1) {
  std::vector<std::int32_t> prompt(length);
  std::iota(prompt.begin(), prompt.end(), 100 * static_cast<std::int32_t>(id));
  return prompt;
}

NewSequence make(SequenceId id, std::int64_t prompt_len, std::int64_t max_tokens, bool score_prompt = false) {
  return {.id = id, .prompt = prompt_of(prompt_len, id), .max_tokens = max_tokens, .score_prompt = score_prompt};
}

// Ids and row counts of the step, like {{1, 4}, {2, 1}}.
std::vector<std::pair<SequenceId, int>> shape(const StepPlan& plan) {
  std::vector<std::pair<SequenceId, int>> result;
  for (const SequenceStep& step : plan.sequences) result.emplace_back(step.id, step.num_rows);
  return result;
}

// `drawn`: the token of each draw, in the plan's order.
void complete(Scheduler& scheduler, const StepPlan& plan, std::vector<std::int32_t> drawn) {
  StepTokens tokens;
  accept_drafts(plan, drawn, tokens);
  scheduler.complete(tokens);
  scheduler.check();
}

// Answers every draw with token 7.
void complete(Scheduler& scheduler, const StepPlan& plan) {
  std::size_t num_draws = 0;
  for (const SequenceStep& step : plan.sequences) num_draws += static_cast<std::size_t>(step.num_draws);
  complete(scheduler, plan, std::vector<std::int32_t>(num_draws, 7));
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
  EXPECT_EQ(scheduler.num_available_pages(), 4);
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
  EXPECT_EQ(first.sequences[0].num_draws, 1);
  EXPECT_EQ(first.sequences[1].num_draws, 0);  // its prompt is not complete
  complete(scheduler, first);

  const StepPlan& second = scheduler.plan();
  EXPECT_EQ(shape(second), (Shape{{1, 1}, {2, 3}, {3, 4}}));
  EXPECT_EQ(second.sequences[1].start_position, 7);
  EXPECT_EQ(second.sequences[1].num_draws, 1);
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
  ASSERT_EQ(shape(again).size(), 1u);
  EXPECT_EQ(again.sequences[0].start_position + again.sequences[0].num_rows, length);
  EXPECT_EQ(again.sequences[0].num_kept_pages, 0);
  EXPECT_EQ(again.tokens.back(), 7);
  EXPECT_EQ(again.sequences[0].num_draws, 1);
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
  EXPECT_EQ(plan.sequences[0].num_draws, 0);
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
  EXPECT_THROW(scheduler.complete({}), CheckError);                               // one list is missing
  EXPECT_THROW(scheduler.complete({.tokens = {}, .ends = {0}}), CheckError);      // one token is missing
  EXPECT_THROW(scheduler.complete({.tokens = {1, 2}, .ends = {2}}), CheckError);  // one is too many
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

TEST(Scheduler, ASequenceMayNeedItsTokenForAWhile) {
  Scheduler scheduler({.num_pages = 8, .page_size = 4});
  scheduler.add(make(1, 3, 10));
  scheduler.plan();
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}}));  // it runs ahead
  complete(scheduler, scheduler.oldest());
  scheduler.need_token(1, true);
  EXPECT_TRUE(scheduler.plan().empty());
  complete(scheduler, scheduler.oldest());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}}));
  EXPECT_TRUE(scheduler.plan().empty());
  complete(scheduler, scheduler.oldest());
  scheduler.hold(1, true);
  EXPECT_THROW(scheduler.need_token(1, false), CheckError);
  scheduler.hold(1, false);
  scheduler.need_token(1, false);
  scheduler.plan();
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}}));
}

NewSequence needy(SequenceId id, std::int64_t prompt_len, std::int64_t max_tokens) {
  NewSequence sequence = make(id, prompt_len, max_tokens);
  sequence.needs_token = true;
  return sequence;
}

using Tokens = std::vector<std::int32_t>;

TEST(SchedulerDrafts, AreRowsWithALogitRowEach) {
  Scheduler scheduler({.num_pages = 8, .page_size = 4, .max_drafts = 8});
  scheduler.add(needy(1, 3, 20));
  complete(scheduler, scheduler.plan());
  scheduler.propose(1, Tokens{7, 8, 9});
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{1, 4}}));
  EXPECT_EQ(plan.tokens, (Tokens{7, 7, 8, 9}));
  EXPECT_EQ(plan.sequences[0].num_draws, 4);
  EXPECT_EQ(plan.sequences[0].start_position, 3);
  EXPECT_EQ(plan.logit_rows, (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(plan.new_pages, (std::vector<PageId>{1}));  // positions 3 to 6
  for (const LogitTarget& target : plan.targets) EXPECT_EQ(target.token, LogitTarget::kSample);

  complete(scheduler, plan, {7, 8, 5, 6});  // the third doesn't hold
  EXPECT_EQ(scheduler.sequence(1).tokens, (Tokens{100, 101, 102, 7, 7, 8, 5}));
  EXPECT_EQ(scheduler.sequence(1).num_computed, 6);
  const StepPlan& next = scheduler.plan();
  EXPECT_EQ(next.tokens, (Tokens{5}));  // the drafts were tried
  EXPECT_EQ(next.sequences[0].start_position, 6);
  EXPECT_EQ(next.sequences[0].num_kept_pages, 2);
}

TEST(SchedulerDrafts, RejectedOnesGiveTheirPagesBack) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2, .max_drafts = 8});
  scheduler.add(needy(1, 3, 10));
  complete(scheduler, scheduler.plan());
  scheduler.propose(1, Tokens{1, 2, 3, 4, 5});
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(plan.sequences[0].num_rows, 6);  // positions 3 to 8
  EXPECT_EQ(scheduler.pages().num_in_use(), 5);
  complete(scheduler, plan, {9, 2, 3, 4, 5, 6});
  EXPECT_EQ(scheduler.pages().num_in_use(), 3);  // 5 tokens
  const StepPlan& next = scheduler.plan();
  EXPECT_EQ(next.sequences[0].start_position, 4);
  EXPECT_EQ(next.sequences[0].num_kept_pages, 3);
}

TEST(SchedulerDrafts, AreCutToWhatIsLeft) {
  // By max_drafts, by rows beside a row for everybody, and by max_tokens.
  Scheduler scheduler({.num_pages = 64, .page_size = 4, .max_batch_tokens = 6, .max_drafts = 3});
  scheduler.add(needy(1, 1, 30));
  scheduler.add(needy(2, 1, 3));
  scheduler.add(make(3, 1, 30));
  complete(scheduler, scheduler.plan());
  for (const SequenceId id : {1, 2}) scheduler.propose(id, Tokens{1, 2, 3, 4, 5});
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 4}, {2, 1}, {3, 1}}));
  complete(scheduler, scheduler.oldest(), {8, 8, 8, 8, 8, 8});
  scheduler.propose(2, Tokens{1, 2, 3, 4, 5});
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}, {2, 1}, {3, 1}}));  // one token is left to it
}

TEST(SchedulerDrafts, PreemptNobody) {
  Scheduler scheduler({.num_pages = 4, .page_size = 2, .max_drafts = 8});
  scheduler.add(needy(1, 2, 6));
  scheduler.add(make(2, 2, 2));
  complete(scheduler, scheduler.plan());
  scheduler.propose(1, Tokens{1, 2, 3, 4});
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{1, 2}, {2, 1}}));  // each takes a page; what is free of the first one's is tried
  complete(scheduler, plan);
  EXPECT_EQ(scheduler.num_preemptions(), 0u);
}

TEST(SchedulerDrafts, AreForSequencesWhoseTokensAreKnown) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2, .max_drafts = 8});
  scheduler.add(make(1, 2, 6));
  scheduler.add(needy(2, 2, 6));
  scheduler.plan();
  EXPECT_THROW(scheduler.propose(1, Tokens{1}), CheckError);
  EXPECT_THROW(scheduler.propose(2, Tokens{1}), CheckError);
  EXPECT_THROW(scheduler.propose(3, Tokens{1}), CheckError);
}

// It doesn't need its token, but nobody knows how many of its drafts hold.
TEST(SchedulerDrafts, OfASequenceThatRunsAheadHoldItUpWhileTheyAreInFlight) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2, .max_drafts = 8});
  scheduler.add(make(1, 2, 6));
  scheduler.propose(1, Tokens{7, 8});
  EXPECT_EQ(scheduler.plan().sequences.at(0).num_drafts(), 2);
  EXPECT_TRUE(scheduler.plan().empty());
  scheduler.complete({.tokens = {7, 9}, .ends = {2}});
  const StepPlan& plan = scheduler.plan();
  ASSERT_EQ(plan.num_rows(), 1);
  EXPECT_EQ(plan.tokens[0], 9);
  EXPECT_EQ(plan.sequences[0].start_position, 3);
  EXPECT_EQ(scheduler.plan().num_rows(), 1);  // it runs ahead again
  scheduler.check();
}

TEST(SchedulerNeedsToken, OthersRunAheadAndItHasItsTurns) {
  Scheduler scheduler({.num_pages = 64, .page_size = 4});
  for (SequenceId id : {1, 3}) scheduler.add(make(id, 2, 20));
  scheduler.add(needy(2, 2, 20));
  scheduler.plan();
  std::vector<std::size_t> sizes;
  int turns = 0;
  for (int step = 0; step < 12; ++step) {
    const StepPlan& plan = scheduler.plan();  // the one before it is in flight
    sizes.push_back(plan.sequences.size());
    for (const SequenceStep& part : plan.sequences) {
      turns += part.id == 2;
      if (part.id == 2) {
        EXPECT_GE(plan.tokens[static_cast<std::size_t>(part.first_row)], 0);
      }
    }
    complete(scheduler, scheduler.oldest());
  }
  EXPECT_EQ(sizes, (std::vector<std::size_t>{2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3}));
  EXPECT_EQ(turns, 6);
}

TEST(SchedulerNeedsToken, AloneItWaitsForItsToken) {
  Scheduler scheduler({.num_pages = 8, .page_size = 4});
  scheduler.add(needy(1, 2, 3));
  scheduler.plan();
  EXPECT_TRUE(scheduler.plan().empty());
  complete(scheduler, scheduler.oldest());
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}}));
}

TEST(SchedulerAppend, OneStepComputesAllOfTheTokens) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2});
  scheduler.add(needy(1, 3, 6));
  complete(scheduler, scheduler.plan());
  scheduler.append(1, Tokens{8, 9, 10});
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(plan.tokens, (Tokens{7, 8, 9, 10}));
  EXPECT_EQ(plan.sequences[0].num_draws, 1);
  EXPECT_EQ(plan.logit_rows, (Tokens{3}));
  EXPECT_EQ(scheduler.pages().num_in_use(), 4);
  EXPECT_THROW(scheduler.append(1, Tokens{1}), CheckError);  // its latest token isn't known
  complete(scheduler, plan);
  EXPECT_EQ(scheduler.sequence(1).tokens, (Tokens{100, 101, 102, 7, 8, 9, 10, 7}));
  EXPECT_THROW(scheduler.append(1, Tokens{1, 2}), CheckError);  // past max_tokens
  EXPECT_THROW(scheduler.append(2, Tokens{1}), CheckError);
}

TEST(SchedulerAppend, MayPreempt) {
  Scheduler scheduler({.num_pages = 5, .page_size = 2});
  scheduler.add(needy(1, 2, 8));
  scheduler.add(make(2, 3, 2));
  complete(scheduler, scheduler.plan());
  scheduler.append(1, Tokens{8, 9, 10, 11});  // 4 pages
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 5}}));
  EXPECT_EQ(scheduler.num_preemptions(), 1u);
}

// Sequences 4 to 10 lack one row each whose hidden state is wanted; a step has room for one of them.
TEST(Scheduler, RowsThatFindNoRoomLeaveTheirPagesToOthers) {
  Scheduler scheduler({.num_pages = 25, .page_size = 1, .max_batch_tokens = 6, .max_prompt_hidden = 1});
  for (SequenceId id = 1; id <= 10; ++id) {
    NewSequence sequence = make(id, 2, 0);
    sequence.num_hidden = 1;
    scheduler.add(sequence);
  }
  for (SequenceId id = 11; id <= 15; ++id) scheduler.add(make(id, 1, 4));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 2}, {2, 1}, {3, 1}, {4, 1}, {5, 1}}));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 1}, {6, 1}, {7, 1}, {8, 1}, {9, 1}, {10, 1}}));
  complete(scheduler, scheduler.oldest());
  scheduler.remove(1);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{3, 1}, {11, 1}, {12, 1}, {13, 1}, {14, 1}, {15, 1}}));
  complete(scheduler, scheduler.oldest());
  scheduler.remove(2);
  ASSERT_EQ(scheduler.num_available_pages(), 4);  // for five decoding sequences
  EXPECT_TRUE(scheduler.plan().empty());
  EXPECT_EQ(scheduler.num_preemptions(), 0u);  // a step in flight writes to the pages
  complete(scheduler, scheduler.oldest());
}

// The same prompt as the sequence `other`.
NewSequence like(SequenceId id, SequenceId other, std::int64_t prompt_len, std::int64_t max_tokens) {
  NewSequence sequence = make(other, prompt_len, max_tokens);
  sequence.id = id;
  return sequence;
}

// Adds a sequence and runs it to its end.
void run(Scheduler& scheduler, NewSequence sequence) {
  const SequenceId id = sequence.id;
  const std::int64_t len = std::ssize(sequence.prompt) + sequence.max_tokens;
  scheduler.add(std::move(sequence));
  while (scheduler.sequence(id).len() < len || scheduler.sequence(id).num_uncomputed() > 1) {
    complete(scheduler, scheduler.plan());
  }
  scheduler.remove(id);
  scheduler.check();
}

TEST(SchedulerPrefix, GivesFullPagesAndACopyOfTheNext) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4});
  run(scheduler, make(1, 10, 1));
  EXPECT_EQ(scheduler.num_available_pages(), 16);
  EXPECT_EQ(scheduler.tree().num_pages(), 3);
  scheduler.add(like(2, 1, 12, 3));
  const StepPlan& plan = scheduler.plan();
  ASSERT_EQ(shape(plan), (Shape{{2, 2}}));
  EXPECT_EQ(plan.sequences[0].start_position, 10);
  EXPECT_EQ(plan.sequences[0].num_kept_pages, 0);
  const PageId own = scheduler.sequence(2).pages[2];
  EXPECT_EQ(plan.new_pages, (std::vector<PageId>{0, 1, own}));
  ASSERT_EQ(plan.copies.size(), 1u);
  EXPECT_EQ(plan.copies[0].source, 2);
  EXPECT_EQ(plan.copies[0].destination, own);
  EXPECT_EQ(scheduler.pages().num_owners(2), 2u);  // the tree, and the copy that is under way
  EXPECT_EQ(scheduler.prefix_counts().queries, 22u);
  EXPECT_EQ(scheduler.prefix_counts().hits, 10u);
  complete(scheduler, plan);
  EXPECT_EQ(scheduler.pages().num_owners(2), 1u);
  EXPECT_TRUE(scheduler.plan().copies.empty());
}

TEST(SchedulerPrefix, GeneratedTokensBelongToIt) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4});
  run(scheduler, make(1, 3, 7));  // the last of 10 tokens is not computed
  NewSequence next = make(1, 3, 1);
  next.id = 2;
  next.prompt.insert(next.prompt.end(), {7, 7, 7, 7, 7, 7, 7, 8, 9});
  scheduler.add(next);
  EXPECT_EQ(scheduler.plan().sequences[0].start_position, 8);
}

TEST(SchedulerPrefix, OneTokenAtLeastIsComputed) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4});
  run(scheduler, make(1, 8, 1));
  scheduler.add(like(2, 1, 8, 1));
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{2, 1}}));  // in a copy of the page
  EXPECT_EQ(plan.copies.size(), 1u);
}

TEST(SchedulerPrefix, ThoseThatComeTogetherComputeItOnce) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4});
  for (const SequenceId id : {1, 2, 3}) scheduler.add(like(id, 1, 10, 4));
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{1, 10}, {2, 2}, {3, 2}}));
  EXPECT_TRUE(plan.copies.empty());  // nothing is copied from what the step computes
  EXPECT_EQ(scheduler.sequence(2).pages[1], scheduler.sequence(1).pages[1]);
  scheduler.remove(1);
  scheduler.check();
  complete(scheduler, plan);
}

// A device reads what a single row attends to before the step writes.
TEST(SchedulerPrefix, ASingleRowWaitsForTheStepThatFillsItsPages) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4});
  for (const SequenceId id : {1, 2}) scheduler.add(like(id, 1, 9, 4));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 9}}));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 1}, {2, 1}}));  // the first is in flight
  complete(scheduler, scheduler.oldest());
}

TEST(SchedulerPrefix, ANewcomerWaitsForWhatIsBeingComputed) {
  for (const bool aborts : {false, true}) {
    Scheduler scheduler({.num_pages = 16, .page_size = 4, .max_prompt_logits = 4});
    scheduler.add(make(1, 10, 2, true));  // 4 rows per step
    scheduler.add(like(2, 1, 10, 2));
    EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 4}}));
    complete(scheduler, scheduler.oldest());
    if (aborts) {
      scheduler.remove(1);
      EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 6}}));  // the first page is there
      continue;
    }
    EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 4}, {2, 2}}));  // the step fills the second
    complete(scheduler, scheduler.oldest());
    EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 1}, {1, 2}}));
  }
}

TEST(SchedulerPrefix, APrefillPassesOverWhatAnotherHasComputedSince) {
  Scheduler scheduler({.num_pages = 32, .page_size = 4, .max_batch_tokens = 8});
  scheduler.add(make(1, 20, 4));
  complete(scheduler, scheduler.plan());
  NewSequence other = like(2, 1, 20, 4);
  other.standing.priority = -1;
  scheduler.add(other);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 8}}));
  EXPECT_EQ(scheduler.oldest().sequences[0].start_position, 8);
  complete(scheduler, scheduler.oldest());
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(shape(plan), (Shape{{2, 4}, {1, 4}}));
  EXPECT_EQ(plan.sequences[1].start_position, 16);
  EXPECT_EQ(plan.sequences[1].num_kept_pages, 2);
  EXPECT_EQ(scheduler.sequence(1).pages[3], scheduler.sequence(2).pages[3]);
  complete(scheduler, plan);
}

TEST(SchedulerPrefix, NobodyWaitsForStrangers) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4, .max_prompt_logits = 4});
  scheduler.add(make(1, 10, 2, true));
  NewSequence other = like(2, 1, 10, 2);
  other.space.salt = {1, 2};
  scheduler.add(other);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{1, 4}, {2, 10}}));
}

TEST(SchedulerPrefix, RowsThatAreWantedAreComputed) {
  Scheduler scheduler({.num_pages = 32, .page_size = 4});
  run(scheduler, make(1, 10, 6));
  NewSequence scored = like(2, 1, 10, 3), hidden = like(3, 1, 10, 0);
  scored.score_prompt = true;
  hidden.num_hidden = 4;
  scheduler.add(scored);
  scheduler.add(hidden);
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 10}, {3, 4}}));
}

TEST(SchedulerPrefix, WhatIsComputedTwiceIsKeptOnce) {
  Scheduler scheduler({.num_pages = 32, .page_size = 4});
  run(scheduler, make(1, 10, 1));
  NewSequence scored = like(2, 1, 10, 3);
  scored.score_prompt = true;
  scheduler.add(scored);
  const std::vector<PageId> own = scheduler.plan().new_pages;
  EXPECT_EQ(scheduler.sequence(2).pages, (std::vector<PageId>{0, 1, own[2]}));
  EXPECT_EQ(scheduler.pages().num_owners(own[0]), 1u);  // the step computes it
  complete(scheduler, scheduler.oldest());
  EXPECT_EQ(scheduler.pages().num_owners(own[0]), 0u);
  const StepPlan& next = scheduler.plan();
  EXPECT_EQ(next.sequences[0].num_kept_pages, 0);
  EXPECT_EQ(next.new_pages, scheduler.sequence(2).pages);
  complete(scheduler, next);
  EXPECT_EQ(scheduler.plan().sequences[0].num_kept_pages, 3);
}

TEST(SchedulerPrefix, IsGivenUpBeforeAnybodyIsPreempted) {
  Scheduler scheduler({.num_pages = 4, .page_size = 4});
  run(scheduler, make(1, 8, 1));
  scheduler.add(make(2, 8, 8));
  while (scheduler.sequence(2).len() < 16) complete(scheduler, scheduler.plan());
  EXPECT_EQ(scheduler.num_preemptions(), 0u);
  EXPECT_EQ(scheduler.tree().num_evicted(), 2u);
}

// A page is not kept to be copied where the sequence needs it for itself.
TEST(SchedulerPrefix, IsGivenUpForASequenceThatFillsTheCache) {
  Scheduler scheduler({.num_pages = 4, .page_size = 4});
  run(scheduler, make(1, 7, 1));
  scheduler.add(like(2, 1, 15, 1));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 11}}));
  EXPECT_TRUE(scheduler.oldest().copies.empty());
  complete(scheduler, scheduler.oldest());
  scheduler.remove(2);
  run(scheduler, make(3, 12, 4));
  EXPECT_EQ(scheduler.tree().num_evicted(), 5u);
}

TEST(SchedulerPrefix, APreemptedSequenceFindsItsOwn) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2});
  scheduler.add(make(1, 4, 12));
  scheduler.add(make(2, 4, 8));
  while (scheduler.num_preemptions() == 0) complete(scheduler, scheduler.plan());
  const std::int64_t length = scheduler.waiting().front().len();
  scheduler.remove(1);
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(plan.sequences[0].start_position, (length - 1) / 2 * 2 - 2);  // the first took a page
  EXPECT_EQ(scheduler.prefix_counts().queries, 8u);                       // each once
}

// Ranks read the tokens that were generated or forced in rows, also where another sequence has computed them.
TEST(SchedulerPrefix, TokensThatRanksHaveNotSeenAreComputed) {
  Scheduler scheduler({.num_pages = 8, .page_size = 2});
  NewSequence first{.id = 1, .prompt = {1, 2, 3, 4, 7, 8, 9, 10, 11, 12}, .max_tokens = 4};
  NewSequence second{.id = 2, .prompt = {1, 2, 3, 4}, .max_tokens = 8, .needs_token = true};
  scheduler.add(first);
  scheduler.add(second);
  complete(scheduler, scheduler.plan());
  scheduler.append(2, Tokens{8, 9, 10, 11});
  complete(scheduler, scheduler.plan());
  ASSERT_EQ(scheduler.num_preemptions(), 1u);
  while (scheduler.sequence(1).len() < 14) complete(scheduler, scheduler.plan());
  scheduler.remove(1);
  const StepPlan& plan = scheduler.plan();
  EXPECT_EQ(plan.sequences[0].start_position, 4);
  EXPECT_EQ(plan.tokens, (Tokens{7, 8, 9, 10, 11}));
}

TEST(SchedulerPrefix, NothingIsKeptWithoutIt) {
  Scheduler scheduler({.num_pages = 16, .page_size = 4, .prefix_cache = false});
  run(scheduler, make(1, 10, 1));
  EXPECT_EQ(scheduler.pages().num_free(), 16);
  for (const SequenceId id : {2, 3}) scheduler.add(like(id, 1, 10, 4));
  EXPECT_EQ(shape(scheduler.plan()), (Shape{{2, 10}, {3, 10}}));
  EXPECT_EQ(scheduler.tree().num_pages(), 0);
}

TEST(SchedulerHidden, RowsInsteadOfDraws) {
  Scheduler scheduler({.num_pages = 32, .page_size = 4, .max_prompt_hidden = 4});
  NewSequence sequence = make(1, 10, 0);
  sequence.num_hidden = 7;
  scheduler.add(sequence);
  const StepPlan& first = scheduler.plan();
  EXPECT_EQ(shape(first), (Shape{{1, 7}}));
  EXPECT_EQ(first.hidden_rows, (Tokens{3, 4, 5, 6}));
  EXPECT_EQ(first.sequences[0].num_hidden, 4);
  EXPECT_TRUE(first.logit_rows.empty());
  complete(scheduler, first);
  const StepPlan& second = scheduler.plan();
  EXPECT_EQ(second.hidden_rows, (Tokens{0, 1, 2}));
  complete(scheduler, second);
  scheduler.remove(1);
  sequence.id = 2;
  sequence.num_hidden = 11;
  EXPECT_THROW(scheduler.add(sequence), CheckError);
  sequence.num_hidden = 1;
  sequence.max_tokens = 1;
  EXPECT_THROW(scheduler.add(sequence), CheckError);
}

TEST(SchedulerAdapter, ComesWithEveryPart) {
  Scheduler scheduler({.num_pages = 32, .page_size = 4});
  NewSequence sequence = make(1, 10, 2);
  sequence.space.adapter = 3;
  scheduler.add(sequence);
  EXPECT_EQ(scheduler.plan().sequences[0].adapter, 3);
  complete(scheduler, scheduler.oldest());
  EXPECT_EQ(scheduler.plan().sequences[0].adapter, 3);
}

// The second row of 2's prompt fills a page that the tree has, the last that is available. 3 needs one in the same
// step.
TEST(Scheduler, WhoFindsItsPageInTheTreeTakesNobodysLast) {
  Scheduler scheduler({.num_pages = 3, .page_size = 2, .max_batch_tokens = 16, .max_prompt_hidden = 1});
  scheduler.add({.id = 1, .prompt = {5, 6}, .max_tokens = 1});
  complete(scheduler, scheduler.plan());
  scheduler.remove(1);
  scheduler.add({.id = 2, .prompt = {5, 6}, .num_hidden = 2});  // a row per step
  scheduler.add({.id = 3, .prompt = {7, 8}, .max_tokens = 3});
  const StepPlan& first = scheduler.plan();
  EXPECT_EQ(shape(first), (Shape{{2, 1}, {3, 2}}));
  complete(scheduler, first);
  ASSERT_EQ(scheduler.num_available_pages(), 1);
  const StepPlan& second = scheduler.plan();
  EXPECT_EQ(shape(second), (Shape{{2, 1}, {3, 1}}));
  complete(scheduler, second);
}

}  // namespace
}  // namespace minisgl
