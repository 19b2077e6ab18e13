// Messages between ranks: what is written is read again, and nothing else is.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "engine/engine_fixture.h"
#include "engine/plan_codec.h"

namespace minisgl::testing_support {
namespace {

constexpr PlanLimits limits{
    .num_pages = 64, .page_size = 4, .max_model_len = 256, .max_batch_tokens = 5, .vocab_size = 50};

// Says everything again; equal bytes are equal messages.
std::vector<std::byte> read_again(std::span<const std::byte> frame) {
  PlanEncoder encoder;
  PlanDecoder(limits).decode(frame, encoder);
  return {encoder.frame().begin(), encoder.frame().end()};
}

SequenceSampling random_sampling(std::mt19937& random) {
  Request request = random_request(1, limits.max_model_len, random);
  return {.params = request.sampling,
          .prompt_len = std::ssize(request.prompt),
          .prompt = request.prompt,
          .resumed = {3, 4, 3},
          .min_tokens = request.min_tokens,
          .stop_tokens = {1, 2},
          .logprobs = request.logprobs,
          .prompt_logprobs = request.prompt_logprobs};
}

// Two sequences: a chunk of a prompt with one row scored, and a decode with a new page.
StepPlan small_plan() {
  StepPlan plan;
  plan.tokens = {1, 2, 3, 4};
  plan.sequences = {{.id = 7,
                     .first_row = 0,
                     .num_rows = 3,
                     .start_position = 0,
                     .num_kept_pages = 0,
                     .first_new_page = 0,
                     .num_new_pages = 1,
                     .samples = false},
                    {.id = 8,
                     .first_row = 3,
                     .num_rows = 1,
                     .start_position = 8,
                     .num_kept_pages = 2,
                     .first_new_page = 1,
                     .num_new_pages = 1,
                     .samples = true}};
  plan.new_pages = {63, 5};
  plan.logit_rows = {1, 3};
  plan.targets = {{0, 3}, {1, LogitTarget::kSample}};
  return plan;
}

PlanEncoder sample_frame() {
  std::mt19937 random(1);
  PlanEncoder encoder;
  encoder.add(~SequenceId{0}, random_sampling(random));
  SequenceSampling biased;
  biased.params.logit_bias = {{4, 0.5f}, {49, -2.0f}};
  biased.prompt_len = 9;
  encoder.add(7, biased);
  encoder.step(small_plan());
  encoder.remove(7);
  encoder.shut_down();
  return encoder;
}

TEST(PlanCodec, WhatIsWrittenIsReadAgain) {
  const PlanEncoder encoder = sample_frame();
  EXPECT_EQ(read_again(encoder.frame()), std::vector(encoder.frame().begin(), encoder.frame().end()));
  EXPECT_TRUE(read_again({}).empty());
}

TEST(PlanCodec, FieldsArriveWhereTheyBelong) {
  struct Recorder final : PlanHandler {
    void add(SequenceId id, SequenceSampling sampling) override { added.emplace_back(id, std::move(sampling)); }
    void remove(SequenceId id) override { removed = id; }
    void step(const StepPlan& plan) override { last = plan; }
    void shut_down() override { over = true; }
    std::vector<std::pair<SequenceId, SequenceSampling>> added;
    SequenceId removed = 0;
    StepPlan last;
    bool over = false;
  } recorder;
  PlanDecoder(limits).decode(sample_frame().frame(), recorder);
  ASSERT_EQ(recorder.added.size(), 2u);
  EXPECT_EQ(recorder.added[0].first, ~SequenceId{0});
  EXPECT_EQ(std::ssize(recorder.added[0].second.prompt), recorder.added[0].second.prompt_len);
  EXPECT_EQ(recorder.added[1].second.prompt_len, 9);
  EXPECT_TRUE(recorder.added[1].second.prompt.empty());
  EXPECT_EQ(recorder.added[1].second.params.logit_bias,
            (std::vector<std::pair<std::int32_t, float>>{{4, 0.5f}, {49, -2.0f}}));
  EXPECT_EQ(recorder.last.tokens, small_plan().tokens);
  EXPECT_EQ(recorder.last.new_pages, small_plan().new_pages);
  EXPECT_EQ(recorder.last.sequences[1].start_position, 8);
  EXPECT_TRUE(recorder.last.sequences[1].samples);
  EXPECT_EQ(recorder.last.targets[0].token, 3);
  EXPECT_EQ(recorder.removed, 7u);
  EXPECT_TRUE(recorder.over);
}

TEST(PlanCodec, EveryTruncationIsRefusedOrWhole) {
  const PlanEncoder encoder = sample_frame();
  const auto frame = encoder.frame();
  int whole = 0;
  for (std::size_t size = 0; size < frame.size(); ++size) {
    try {
      EXPECT_EQ(read_again(frame.first(size)), std::vector(frame.begin(), frame.begin() + static_cast<long>(size)));
      ++whole;
    } catch (const InputError&) {
    }
  }
  EXPECT_EQ(whole, 5);  // nothing, and the ends of all messages but the last
}

TEST(PlanCodec, RandomDamageNeverPassesTheChecks) {
  std::mt19937 random(5);
  const PlanEncoder encoder = sample_frame();
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> frame(encoder.frame().begin(), encoder.frame().end());
    for (unsigned changes = 1 + random() % 4; changes > 0; --changes) {
      frame[random() % frame.size()] = static_cast<std::byte>(random());
    }
    try {
      read_again(frame);
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()), "");
    }
  }
}

TEST(PlanCodec, TokensOfTheStepBeforeAreForThoseThatRunAhead) {
  StepPlan later = small_plan();
  later.tokens[3] = -2;  // what the second target of the step before draws
  PlanEncoder encoder;
  encoder.step(small_plan());
  encoder.step(later);
  PlanEncoder again;
  EXPECT_THROW(PlanDecoder(limits).decode(encoder.frame(), again), InputError);
  PlanLimits ahead = limits;
  ahead.runs_ahead = true;
  PlanDecoder(ahead).decode(encoder.frame(), again);
  later.tokens[3] = -3;
  encoder.step(later);
  EXPECT_THROW(PlanDecoder(ahead).decode(encoder.frame(), again), InputError);
}

struct Damage {
  const char* sentence;
  void (*apply)(StepPlan&);
};

class DamagedPlan : public testing::TestWithParam<Damage> {};

TEST_P(DamagedPlan, IsRefusedWithTheField) {
  StepPlan plan = small_plan();
  GetParam().apply(plan);
  PlanEncoder encoder;
  encoder.step(plan);
  try {
    read_again(encoder.frame());
    FAIL();
  } catch (const InputError& error) {
    EXPECT_EQ(error.what(), std::string("a plan is damaged: ") + GetParam().sentence);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, DamagedPlan,
    testing::Values(
        Damage{"token 50 is out of range", [](StepPlan& plan) { plan.tokens[0] = 50; }},
        Damage{"token -7 is out of range", [](StepPlan& plan) { plan.tokens[0] = -7; }},
        Damage{"page 64 is out of range", [](StepPlan& plan) { plan.new_pages[1] = 64; }},
        Damage{"it has sequence 8 twice", [](StepPlan& plan) { plan.sequences[0].id = 8; }},
        Damage{"num_rows 0 is out of range", [](StepPlan& plan) { plan.sequences[0].num_rows = 0; }},
        Damage{"number of rows 4 is out of range", [](StepPlan& plan) { plan.sequences[0].num_rows = 2; }},
        Damage{"number of rows 5 is out of range", [](StepPlan& plan) { plan.tokens.push_back(1); }},
        Damage{"number of rows 6 is out of range",
               [](StepPlan& plan) {
                 plan.tokens = {1, 2, 3, 4, 5, 6};
                 plan.sequences[0].num_rows = 5;
               }},
        Damage{"start_position 256 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = 256; }},
        Damage{"start_position -1 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = -1; }},
        Damage{"num_new_pages 1 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = 12; }},
        Damage{"num_new_pages 1 is out of range", [](StepPlan& plan) { plan.sequences[1].num_kept_pages = 64; }},
        Damage{"number of new pages 2 is out of range", [](StepPlan& plan) { plan.sequences[1].num_new_pages = 0; }},
        Damage{"number of targets 1 is out of range", [](StepPlan& plan) { plan.targets.pop_back(); }},
        Damage{"logit row 1 is out of range", [](StepPlan& plan) { plan.logit_rows[1] = 1; }},
        Damage{"logit row 4 is out of range", [](StepPlan& plan) { plan.logit_rows[1] = 4; }},
        Damage{"target 2 is out of range", [](StepPlan& plan) { plan.targets[1].sequence = 2; }},
        Damage{"target 0 is out of range", [](StepPlan& plan) { plan.targets[1].sequence = 0; }},
        Damage{"target token 50 is out of range", [](StepPlan& plan) { plan.targets[0].token = 50; }}));

}  // namespace
}  // namespace minisgl::testing_support
