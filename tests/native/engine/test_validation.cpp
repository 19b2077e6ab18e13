// Each field at its limits and just beyond.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/engine_fixture.h"
#include "engine/validation.h"

namespace minisgl::testing_support {
namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

// The message about a valid request after `change`, "" when it is accepted.
template <typename Change>
std::string fault_after(Change change) {
  Request request = make_request(1, {1, 2, 3}, 10);
  change(request);
  const auto fault = find_fault(request, fake_spec(), small_options());
  return fault ? fault->message : "";
}

TEST(Validation, ChecksThoughts) {
  const ThoughtBudget valid{.max_tokens = 0, .states = {-1, 0}, .moves = {{0, 70, 1}, {1, 2, -1}}, .closings = {{49}}};
  const auto fault = [&](auto change) {
    return fault_after([&](Request& request) {
      request.thought = valid;
      change(request.thought);
    });
  };
  EXPECT_EQ(fault([](ThoughtBudget&) {}), "");
  const auto expect = [&](const char* field, auto change) { EXPECT_THAT(fault(change), testing::HasSubstr(field)); };
  expect("thinking_token_budget", [](ThoughtBudget& t) { t.max_tokens = -2; });
  expect("thought_states", [](ThoughtBudget& t) { t.states[1] = 1; });
  expect("thought_states", [](ThoughtBudget& t) { t.states[0] = -2; });
  expect("thought_closings", [](ThoughtBudget& t) { t.states[1] = -1; });
  expect("thought_closings", [](ThoughtBudget& t) { t.closings[0] = {50}; });
  expect("thought_closings", [](ThoughtBudget& t) { t.closings[0].clear(); });
  expect("thought_moves", [](ThoughtBudget& t) { t.moves[0].next = 2; });
  expect("thought_moves", [](ThoughtBudget& t) { t.moves[1].state = 2; });
  expect("thought_moves", [](ThoughtBudget& t) { t.moves[0].state = -1; });
  expect("thought_moves", [](ThoughtBudget& t) { std::swap(t.moves[0], t.moves[1]); });
}

TEST(Validation, AcceptsTheLimits) {
  EXPECT_EQ(fault_after([](Request&) {}), "");
  EXPECT_EQ(fault_after([](Request& r) { r.prompt = {0, 49}; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.max_tokens = 0; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.max_tokens = 253; }), "");
  EXPECT_EQ(fault_after([](Request& r) {
              r.num_resumed = 2;  // of the prompt's three tokens
              r.max_tokens = 255;
            }),
            "");
  EXPECT_EQ(fault_after([](Request& r) { r.min_tokens = 10; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.logprobs = r.prompt_logprobs = 20; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.temperature = 0; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.temperature = 100; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.min_p = 1; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.top_k = -1; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.logit_bias = {{0, -100.0f}, {49, 100.0f}}; }), "");
}

TEST(Validation, NamesTheFieldAndTheValue) {
  EXPECT_EQ(fault_after([](Request& r) { r.prompt.clear(); }), "the prompt is empty; it must have at least 1 token");
  EXPECT_EQ(fault_after([](Request& r) { r.prompt[1] = -1; }), "prompt has token id -1, outside the vocabulary of 50");
  EXPECT_EQ(fault_after([](Request& r) { r.stop_token_ids = {50}; }),
            "stop_token_ids has token id 50, outside the vocabulary of 50");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.logit_bias = {{50, 1.0f}}; }),
            "logit_bias has token id 50, outside the vocabulary of 50");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.logit_bias = {{4, not_a_number}}; }),
            "logit_bias of token 4 must be a finite number, got nan");
  EXPECT_EQ(fault_after([](Request& r) { r.max_tokens = -1; }), "max_tokens must be at least 0, got -1");
  EXPECT_EQ(fault_after([](Request& r) {
              r.num_resumed = 2;
              r.max_tokens = 1;
            }),
            "max_tokens must be at least 2, got 1");
  EXPECT_EQ(fault_after([](Request& r) { r.min_tokens = -1; }), "min_tokens must be at least 0, got -1");
  EXPECT_EQ(fault_after([](Request& r) { r.logprobs = 21; }),
            "logprobs must be between 0 and 20, or -1 for none, got 21");
  EXPECT_EQ(fault_after([](Request& r) { r.prompt_logprobs = -2; }),
            "prompt_logprobs must be between 0 and 20, or -1 for none, got -2");
  EXPECT_EQ(fault_after([](Request& r) { r.standing.priority = 101; }),
            "priority must be between -100 and 100, got 101");
  EXPECT_NE(fault_after([](Request& r) { r.standing.priority = -101; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.standing.priority = std::numeric_limits<std::int32_t>::min(); }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.temperature = not_a_number; }),
            "temperature must be between 0 and 100, got nan");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.temperature = 101; }),
            "temperature must be between 0 and 100, got 101");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.temperature = infinity; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.temperature = -0.1f; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.top_k = -2; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.top_p = 0; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.top_p = not_a_number; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.min_p = 1.1f; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.repetition_penalty = 0; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.presence_penalty = infinity; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.frequency_penalty = not_a_number; }), "");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.logit_bias.assign(51, {1, 1.0f}); }), "");
  EXPECT_NE(fault_after([](Request& r) { r.stop_token_ids.assign(51, 1); }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.allowed_token_ids = {3, 50}; }),
            "allowed_token_ids has token id 50, outside the vocabulary of 50");
  EXPECT_NE(fault_after([](Request& r) { r.sampling.allowed_token_ids.assign(51, 1); }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.bad_words = {{3}, {3, 50}}; }),
            "bad_words has token id 50, outside the vocabulary of 50");
  EXPECT_EQ(fault_after([](Request& r) { r.sampling.bad_words = {{}}; }), "bad_words has a word without a token");
}

TEST(Validation, TooLongSaysBothNumbers) {
  Request request = make_request(1, std::vector<std::int32_t>(300, 1), 7);
  const auto fault = find_fault(request, fake_spec(), small_options());
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->code, ErrorCode::too_long);
  EXPECT_EQ(fault->message, "the prompt has 300 tokens and max_tokens is 7; together they may be at most 256");
  request.prompt.resize(3);
  request.max_tokens = std::numeric_limits<std::int64_t>::max();  // no overflow
  EXPECT_EQ(find_fault(request, fake_spec(), small_options())->code, ErrorCode::too_long);
}

}  // namespace
}  // namespace minisgl::testing_support
