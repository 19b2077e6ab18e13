// Messages between ranks: what is written is read again, and nothing else is.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/error.h"
#include "engine/engine_fixture.h"
#include "engine/plan_codec.h"

namespace minisgl::testing_support {
namespace {

constexpr PlanLimits limits{.num_pages = 64,
                            .num_host_pages = 100,
                            .page_size = 4,
                            .max_model_len = 256,
                            .max_batch_tokens = 12,
                            .max_logits = 7,
                            .max_hidden = 1,
                            .vocab_size = 50,
                            .num_adapters = 2};

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
                     .num_new_pages = 1},
                    {.id = 8,
                     .first_row = 3,
                     .num_rows = 1,
                     .start_position = 8,
                     .num_kept_pages = 2,
                     .first_new_page = 1,
                     .num_new_pages = 1,
                     .num_draws = 1}};
  plan.new_pages = {63, 5};
  plan.logit_rows = {1, 3};
  plan.targets = {{0, 3}, {1, LogitTarget::kSample}};
  return plan;
}

// Beside those: a part with two drafts, one that gives hidden states, adapters and a copied page.
StepPlan full_plan() {
  StepPlan plan = small_plan();
  plan.tokens.insert(plan.tokens.end(), {5, 6, 7, /**/ 8, 9});
  plan.sequences.push_back({.id = 9,
                            .first_row = 4,
                            .num_rows = 3,
                            .start_position = 1,
                            .num_kept_pages = 1,
                            .first_new_page = 2,
                            .num_new_pages = 0,
                            .num_draws = 3,
                            .adapter = 2});
  plan.sequences.push_back({.id = 10,
                            .first_row = 7,
                            .num_rows = 2,
                            .start_position = 2,
                            .num_kept_pages = 1,
                            .first_new_page = 2,
                            .num_new_pages = 0,
                            .num_hidden = 1,
                            .adapter = 1});
  for (const std::int32_t row : {4, 5, 6}) {
    plan.logit_rows.push_back(row);
    plan.targets.push_back({2, LogitTarget::kSample});
  }
  plan.hidden_rows = {8};
  plan.copies = {{.source = 3, .destination = 63}, {.source = 3, .destination = 4}};
  return plan;
}

constexpr std::size_t frame_header_bytes = 4;

// Three pages to the host.
TierCopies some_copies() {
  return {.number = 1, .to_host = true, .pages = {{0, 99}, {63, 0}, {7, 5}}};
}

PlanEncoder sample_frame() {
  std::mt19937 random(1);
  PlanEncoder encoder;
  encoder.add(~SequenceId{0}, random_sampling(random));
  SequenceSampling biased;
  biased.params.logit_bias = {{4, 0.5f}, {49, -2.0f}};
  biased.params.allowed_token_ids = {49, 3};
  biased.params.bad_words = {{7}, {1, 2, 49}};
  biased.prompt_len = 9;
  encoder.add(7, biased);
  encoder.append(7, std::vector<std::int32_t>{49, 0, 1});
  encoder.mask(8, std::vector<std::uint32_t>{5, 1u << 17});
  encoder.mask(8, {});
  encoder.pause(8, std::vector<std::int32_t>{3, 49});
  encoder.step(small_plan());
  encoder.step(full_plan());
  encoder.copy(some_copies(), 2);
  StepPlan behind = small_plan();
  behind.copies_before = 1;
  behind.sequences[1].awaits_mask = 1;
  encoder.step(behind);
  encoder.draw(std::vector<SequenceId>{8, ~SequenceId{0}});
  encoder.remove(7);
  encoder.shut_down();
  return encoder;
}

TEST(PlanCodec, WhatIsWrittenIsReadAgain) {
  const PlanEncoder encoder = sample_frame();
  EXPECT_EQ(read_again(encoder.frame()), std::vector(encoder.frame().begin(), encoder.frame().end()));
  EXPECT_TRUE(read_again({}).empty());
}

void expect_equal(const StepPlan& got, const StepPlan& expected) {
  EXPECT_EQ(got.tokens, expected.tokens);
  EXPECT_EQ(got.new_pages, expected.new_pages);
  EXPECT_EQ(got.logit_rows, expected.logit_rows);
  EXPECT_EQ(got.hidden_rows, expected.hidden_rows);
  ASSERT_EQ(got.sequences.size(), expected.sequences.size());
  for (std::size_t i = 0; i < got.sequences.size(); ++i) {
    const SequenceStep &a = got.sequences[i], &b = expected.sequences[i];
    EXPECT_EQ(std::tie(a.id, a.first_row, a.num_rows, a.start_position, a.num_kept_pages, a.first_new_page),
              std::tie(b.id, b.first_row, b.num_rows, b.start_position, b.num_kept_pages, b.first_new_page));
    EXPECT_EQ(std::tie(a.num_new_pages, a.num_draws, a.num_hidden, a.adapter, a.awaits_mask),
              std::tie(b.num_new_pages, b.num_draws, b.num_hidden, b.adapter, b.awaits_mask));
  }
  ASSERT_EQ(got.targets.size(), expected.targets.size());
  for (std::size_t i = 0; i < got.targets.size(); ++i) {
    EXPECT_EQ(std::tie(got.targets[i].sequence, got.targets[i].token),
              std::tie(expected.targets[i].sequence, expected.targets[i].token));
  }
  ASSERT_EQ(got.copies.size(), expected.copies.size());
  for (std::size_t i = 0; i < got.copies.size(); ++i) {
    EXPECT_EQ(std::tie(got.copies[i].source, got.copies[i].destination),
              std::tie(expected.copies[i].source, expected.copies[i].destination));
  }
}

TEST(PlanCodec, FieldsArriveWhereTheyBelong) {
  struct Recorder final : PlanHandler {
    void add(SequenceId id, SequenceSampling sampling) override { added.emplace_back(id, std::move(sampling)); }
    void remove(SequenceId id) override { removed = id; }
    void append(SequenceId id, std::span<const std::int32_t> tokens) override {
      appended.emplace_back(id, std::vector(tokens.begin(), tokens.end()));
    }
    void mask(SequenceId id, std::span<const std::uint32_t> words) override {
      masked.emplace_back(id, std::vector(words.begin(), words.end()));
    }
    void pause(SequenceId id, std::span<const std::int32_t> output) override {
      paused.emplace_back(id, std::vector(output.begin(), output.end()));
    }
    void step(const StepPlan& plan) override { steps.push_back(plan); }
    void draw(std::span<const SequenceId> ids) override { withdrawn.assign(ids.begin(), ids.end()); }
    void copy(const TierCopies& copies, std::uint32_t num_in_flight) override {
      copied = copies;
      most_in_flight = num_in_flight;
    }
    void shut_down() override { over = true; }
    std::vector<std::pair<SequenceId, SequenceSampling>> added;
    std::vector<std::pair<SequenceId, std::vector<std::int32_t>>> appended, paused;
    std::vector<std::pair<SequenceId, std::vector<std::uint32_t>>> masked;
    SequenceId removed = 0;
    std::vector<StepPlan> steps;
    std::vector<SequenceId> withdrawn;
    TierCopies copied;
    std::uint32_t most_in_flight = 0;
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
  EXPECT_EQ(recorder.added[1].second.params.bad_words, (std::vector<std::vector<std::int32_t>>{{7}, {1, 2, 49}}));
  EXPECT_EQ(recorder.added[1].second.params.allowed_token_ids, (std::vector<std::int32_t>{49, 3}));
  ASSERT_EQ(recorder.appended.size(), 1u);
  EXPECT_EQ(recorder.appended[0], std::pair(SequenceId{7}, std::vector<std::int32_t>{49, 0, 1}));
  ASSERT_EQ(recorder.masked.size(), 2u);
  EXPECT_EQ(recorder.masked[0], std::pair(SequenceId{8}, std::vector<std::uint32_t>{5, 1u << 17}));
  EXPECT_EQ(recorder.masked[1], std::pair(SequenceId{8}, std::vector<std::uint32_t>()));
  ASSERT_EQ(recorder.paused.size(), 1u);
  EXPECT_EQ(recorder.paused[0], std::pair(SequenceId{8}, std::vector<std::int32_t>{3, 49}));
  ASSERT_EQ(recorder.steps.size(), 3u);
  EXPECT_EQ(recorder.steps[1].copies_before, 0u);
  EXPECT_EQ(recorder.steps[2].copies_before, 1u);
  EXPECT_EQ(recorder.steps[2].sequences[1].awaits_mask, 1);
  EXPECT_EQ(recorder.withdrawn, (std::vector<SequenceId>{8, ~SequenceId{0}}));
  const TierCopies &copied = recorder.copied, expected = some_copies();
  EXPECT_EQ(std::tie(copied.number, copied.to_host), std::tie(expected.number, expected.to_host));
  EXPECT_EQ(recorder.most_in_flight, 2u);
  ASSERT_EQ(copied.pages.size(), 3u);
  for (std::size_t i = 0; i < copied.pages.size(); ++i) {
    EXPECT_EQ(std::pair(copied.pages[i].source, copied.pages[i].destination),
              std::pair(expected.pages[i].source, expected.pages[i].destination));
  }
  expect_equal(recorder.steps[0], small_plan());
  expect_equal(recorder.steps[1], full_plan());
  EXPECT_EQ(recorder.removed, 7u);
  EXPECT_TRUE(recorder.over);
}

TEST(PlanCodec, EveryTruncationIsRefusedOrWhole) {
  const PlanEncoder encoder = sample_frame();
  const auto frame = encoder.frame();
  int whole = 0;
  for (std::size_t size = 0; size < frame.size(); ++size) {
    try {
      const std::vector<std::byte> again = read_again(frame.first(size));
      const std::size_t expected = size == frame_header_bytes ? 0 : size;  // of a frame without a message
      EXPECT_EQ(again, std::vector(frame.begin(), frame.begin() + static_cast<long>(expected)));
      ++whole;
    } catch (const InputError&) {
    }
  }
  EXPECT_EQ(whole, 14);  // nothing, the header alone, and the ends of all messages but the last
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

// Rank 0 of the next release, and of one before frames had versions.
TEST(PlanCodec, AnotherReleaseIsRefusedInOneSentence) {
  const PlanEncoder encoder = sample_frame();
  std::vector<std::byte> frame(encoder.frame().begin(), encoder.frame().end());
  const auto sentence_of = [&] {
    try {
      read_again(frame);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  frame[3] = static_cast<std::byte>(kPlanVersion + 1);
  EXPECT_EQ(sentence_of(), concat("rank 0 sends step plans of version ", kPlanVersion + 1, ", this rank reads version ",
                                  int{kPlanVersion}, ": every host must run the same release of minisgl"));
  frame.erase(frame.begin(), frame.begin() + frame_header_bytes);
  EXPECT_EQ(sentence_of(), "a plan is damaged: it doesn't begin with MSP");
}

// What an ordinary decode step costs on the wire; rare fields are sections.
TEST(PlanCodec, ADecodeStepHas32BytesPerSequence) {
  StepPlan plan;
  PlanEncoder empty, full;
  empty.step(plan);
  for (std::int32_t i = 0; i < 100; ++i) {
    plan.tokens.push_back(1);
    plan.sequences.push_back({.id = static_cast<SequenceId>(i),
                              .first_row = i,
                              .num_rows = 1,
                              .start_position = 8,
                              .num_kept_pages = 3,
                              .first_new_page = 0,
                              .num_new_pages = 0,
                              .num_draws = 1});
    plan.logit_rows.push_back(i);
    plan.targets.push_back({i, LogitTarget::kSample});
  }
  full.step(plan);
  EXPECT_EQ(full.frame().size(), empty.frame().size() + 100 * 32);
  EXPECT_LT(empty.frame().size(), 24u);
}

struct Damage {
  const char* sentence;
  void (*apply)(StepPlan&);
};

class DamagedPlan : public testing::TestWithParam<Damage> {};

TEST_P(DamagedPlan, IsRefusedWithTheField) {
  StepPlan plan = full_plan();
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
        Damage{"number of rows 9 is out of range", [](StepPlan& plan) { plan.sequences[0].num_rows = 2; }},
        Damage{"number of rows 9 is out of range", [](StepPlan& plan) { plan.sequences[0].num_rows = 400; }},
        Damage{"number of rows 10 is out of range", [](StepPlan& plan) { plan.tokens.push_back(1); }},
        Damage{"number of rows 13 is out of range",
               [](StepPlan& plan) {
                 plan.tokens.resize(13, 1);
                 plan.sequences[3].num_rows = 6;
               }},
        Damage{"number of rows of hidden states 2 is out of range",
               [](StepPlan& plan) {
                 plan.tokens.resize(11, 1);
                 plan.sequences[3].num_rows = 4;
                 plan.sequences[3].num_hidden = 2;
               }},
        Damage{"start_position 256 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = 256; }},
        Damage{"start_position -1 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = -1; }},
        Damage{"num_new_pages 1 is out of range", [](StepPlan& plan) { plan.sequences[1].start_position = 12; }},
        Damage{"num_draws 2 is out of range", [](StepPlan& plan) { plan.sequences[1].num_draws = 2; }},
        Damage{"num_draws -1 is out of range", [](StepPlan& plan) { plan.sequences[1].num_draws = -1; }},
        Damage{"token -1 is out of range", [](StepPlan& plan) { plan.tokens[6] = -1; }},  // a draft
        Damage{"num_hidden 3 is out of range", [](StepPlan& plan) { plan.sequences[3].num_hidden = 3; }},
        Damage{"num_hidden 1 is out of range", [](StepPlan& plan) { plan.sequences[2].num_hidden = 1; }},
        Damage{"num_hidden -1 is out of range", [](StepPlan& plan) { plan.sequences[3].num_hidden = -1; }},
        Damage{"adapter 3 is out of range", [](StepPlan& plan) { plan.sequences[0].adapter = 3; }},
        Damage{"adapter -1 is out of range", [](StepPlan& plan) { plan.sequences[0].adapter = -1; }},
        Damage{"awaits_mask 1 is out of range", [](StepPlan& plan) { plan.sequences[0].awaits_mask = 1; }},
        Damage{"awaits_mask 1 is out of range", [](StepPlan& plan) { plan.sequences[2].awaits_mask = 1; }},
        Damage{"awaits_mask 2 is out of range", [](StepPlan& plan) { plan.sequences[1].awaits_mask = 2; }},
        Damage{"page 64 is out of range", [](StepPlan& plan) { plan.copies[0].source = 64; }},
        Damage{"page -1 is out of range", [](StepPlan& plan) { plan.copies[0].destination = -1; }},
        Damage{"copies_before 1 is out of range", [](StepPlan& plan) { plan.copies_before = 1; }},
        Damage{"destination 63 is out of range", [](StepPlan& plan) { plan.copies[1].destination = 63; }},
        Damage{"source 63 is out of range", [](StepPlan& plan) { plan.copies[1].source = 63; }},
        Damage{"num_new_pages 1 is out of range", [](StepPlan& plan) { plan.sequences[1].num_kept_pages = 64; }},
        Damage{"number of new pages 2 is out of range", [](StepPlan& plan) { plan.sequences[1].num_new_pages = 0; }},
        Damage{"scored row 3 is out of range", [](StepPlan& plan) { plan.logit_rows[0] = 3; }},  // a draw's
        Damage{"scored row 9 is out of range", [](StepPlan& plan) { plan.logit_rows[0] = 9; }},
        Damage{"scored row -1 is out of range", [](StepPlan& plan) { plan.logit_rows[0] = -1; }},
        Damage{"scored row 1 is out of range",
               [](StepPlan& plan) {
                 plan.logit_rows.insert(plan.logit_rows.begin(), 1);  // a row twice
                 plan.targets.insert(plan.targets.begin(), {0, 4});
               }},
        Damage{"scored token -2 is out of range", [](StepPlan& plan) { plan.targets[0].token = -2; }},
        Damage{"scored token 50 is out of range", [](StepPlan& plan) { plan.targets[0].token = 50; }}));

TEST(PlanCodec, UnknownSectionsAreRefused) {
  PlanEncoder encoder;
  encoder.step(small_plan());
  std::vector<std::byte> frame(encoder.frame().begin(), encoder.frame().end());
  const std::size_t sections = frame.size() - (4 + 8) - 1;  // before the one score and its list's length
  ASSERT_EQ(frame[sections], std::byte{1});
  frame[sections] = std::byte{65};
  EXPECT_THROW(read_again(frame), InputError);
}

TEST(PlanCodec, CopiesBetweenTiersAreChecked) {
  const auto refuse = [](const TierCopies& copies) {
    PlanEncoder encoder;
    encoder.copy(copies, 0);
    EXPECT_THROW(read_again(encoder.frame()), InputError);
  };
  refuse({.number = 2, .to_host = true, .pages = {{0, 1}}});
  refuse({.number = 1, .to_host = true, .pages = {{64, 1}}});
  refuse({.number = 1, .to_host = true, .pages = {{0, 100}}});
  refuse({.number = 1, .to_host = true, .pages = {{-1, 0}}});
  refuse({.number = 1, .to_host = false, .pages = {{99, 64}}});
  refuse({.number = 1, .to_host = false, .pages = {{99, 3}, {98, 3}}});
}

TEST(PlanCodec, AStepThatAwaitsMasksDrawsBeforeTheNext) {
  StepPlan awaiting = small_plan();
  awaiting.sequences[1].awaits_mask = 1;
  const auto refuse = [](const PlanEncoder& encoder, const char* sentence) {
    try {
      read_again(encoder.frame());
      FAIL();
    } catch (const InputError& error) {
      EXPECT_EQ(error.what(), std::string("a plan is damaged: ") + sentence);
    }
  };
  PlanEncoder encoder;
  encoder.step(awaiting);
  encoder.draw({});
  encoder.step(small_plan());
  EXPECT_EQ(read_again(encoder.frame()), std::vector(encoder.frame().begin(), encoder.frame().end()));
  encoder.draw({});
  refuse(encoder, "no step awaits masks");
  encoder.clear();
  encoder.step(awaiting);
  encoder.step(small_plan());
  refuse(encoder, "the step before awaits masks");
}

TEST(PlanCodec, AppendedTokensAreInTheVocabulary) {
  PlanEncoder encoder;
  encoder.append(1, std::vector<std::int32_t>{50});
  EXPECT_THROW(read_again(encoder.frame()), InputError);
}

}  // namespace
}  // namespace minisgl::testing_support
