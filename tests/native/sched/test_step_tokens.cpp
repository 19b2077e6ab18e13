// Which drafts hold, and the lists of tokens that come of it.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/error.h"
#include "sched/step_tokens.h"

namespace minisgl {
namespace {

// One part for each list of drafts: a known row and the drafts behind it.
StepPlan plan_of(const std::vector<std::vector<std::int32_t>>& drafts) {
  StepPlan plan;
  for (const std::vector<std::int32_t>& of_part : drafts) {
    SequenceStep step{};
    step.id = plan.sequences.size();
    step.first_row = static_cast<std::int32_t>(plan.num_rows());
    plan.tokens.push_back(100);
    plan.tokens.insert(plan.tokens.end(), of_part.begin(), of_part.end());
    step.num_rows = static_cast<std::int32_t>(1 + of_part.size());
    step.num_draws = step.num_rows;
    plan.sequences.push_back(step);
  }
  return plan;
}

std::vector<std::int32_t> list(const StepTokens& tokens, std::size_t sequence) {
  return {tokens.of(sequence).begin(), tokens.of(sequence).end()};
}

using Tokens = std::vector<std::int32_t>;

TEST(StepTokens, ADraftHoldsWhileItIsWhatIsDrawn) {
  const StepPlan plan = plan_of({{1, 2, 3}, {}, {1, 2, 3}, {1, 2, 3}});
  StepTokens tokens;
  accept_drafts(plan, Tokens{1, 2, 3, 4, /**/ 5, /**/ 1, 9, 3, 4, /**/ 9, 2, 3, 4}, tokens);
  EXPECT_EQ(list(tokens, 0), (Tokens{1, 2, 3, 4}));
  EXPECT_EQ(list(tokens, 1), (Tokens{5}));
  EXPECT_EQ(list(tokens, 2), (Tokens{1, 9}));  // what is drawn behind a wrong token is not
  EXPECT_EQ(list(tokens, 3), (Tokens{9}));
  EXPECT_EQ(tokens.num_accepted(0), 3);
  EXPECT_EQ(tokens.num_accepted(1), 0);
  EXPECT_EQ(tokens.num_accepted(2), 1);
  EXPECT_EQ(tokens.num_accepted(3), 0);
}

TEST(StepTokens, APartWithoutDrawsHasNone) {
  StepPlan plan = plan_of({{}, {7}, {}});
  plan.sequences[0].num_draws = 0;
  StepTokens tokens;
  accept_drafts(plan, Tokens{7, 8, 9}, tokens);
  EXPECT_TRUE(list(tokens, 0).empty());
  EXPECT_EQ(tokens.num_accepted(0), 0);
  EXPECT_EQ(list(tokens, 1), (Tokens{7, 8}));
  EXPECT_EQ(list(tokens, 2), (Tokens{9}));
}

TEST(StepTokens, AWithdrawnDrawHasNone) {
  StepPlan plan = plan_of({{}, {}, {}});
  plan.sequences[1].is_withdrawn = true;
  StepTokens tokens;
  accept_drafts(plan, Tokens{7, 0, 9}, tokens);
  EXPECT_EQ(list(tokens, 0), (Tokens{7}));
  EXPECT_TRUE(list(tokens, 1).empty());
  EXPECT_EQ(list(tokens, 2), (Tokens{9}));
}

TEST(StepTokens, OneTokenPerDraw) {
  const StepPlan plan = plan_of({{1}, {}});
  StepTokens tokens;
  EXPECT_THROW(accept_drafts(plan, Tokens{1, 2}, tokens), CheckError);
  EXPECT_THROW(accept_drafts(plan, Tokens{1, 2, 3, 4}, tokens), CheckError);
  EXPECT_THROW(accept_drafts(plan, Tokens{}, tokens), CheckError);
}

// A sampler that is a function of the tokens before gives the same tokens with any drafts.
TEST(StepTokens, DraftsDontChangeWhatIsDrawn) {
  std::mt19937 random(2);
  const auto next_of = [](const Tokens& tokens) { return (tokens.back() * 31 + std::ssize(tokens)) % 5; };
  Tokens expected{3};
  while (expected.size() < 200) expected.push_back(static_cast<std::int32_t>(next_of(expected)));
  Tokens sequence{3};
  std::int32_t num_accepted = 0;
  while (sequence.size() < expected.size()) {
    Tokens drafts(random() % 5), drawn;
    for (std::size_t i = 0; i < drafts.size(); ++i) {
      const std::size_t place = std::min(sequence.size() + i, expected.size() - 1);
      drafts[i] = random() % 3 == 0 ? static_cast<std::int32_t>(random() % 5) : expected[place];
    }
    Tokens tried = sequence;
    for (std::size_t i = 0; i <= drafts.size(); ++i) {
      drawn.push_back(static_cast<std::int32_t>(next_of(tried)));
      if (i < drafts.size()) tried.push_back(drafts[i]);
    }
    StepTokens tokens;
    accept_drafts(plan_of({drafts}), drawn, tokens);
    num_accepted += tokens.num_accepted(0);
    sequence.insert(sequence.end(), tokens.tokens.begin(), tokens.tokens.end());
  }
  sequence.resize(expected.size());
  EXPECT_EQ(sequence, expected);
  EXPECT_GT(num_accepted, 30);
}

}  // namespace
}  // namespace minisgl
