// One request at a time: what it gets, when it ends, and what is said about it.
#include <cmath>
#include <thread>

#include "engine/engine_fixture.h"

namespace minisgl::testing_support {
namespace {

std::vector<std::int32_t> top_ids(const TokenOutput& token) {
  std::vector<std::int32_t> ids;
  for (const TokenLogprob& entry : token.top) ids.push_back(entry.token);
  return ids;
}

TEST(Engine, GeneratesWhatTheModelSays) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5, 6, 7, 8, 9}, 12);
  request.ignore_eos = true;
  const auto result = test.run(request);
  EXPECT_EQ(result.token_ids(), reference_generate(request, fake_spec()).tokens);
  EXPECT_EQ(result.tokens.size(), 12u);
  EXPECT_EQ(result.finish, FinishReason::length);
  EXPECT_EQ(result.outputs.size(), 12u);  // one a step
  EXPECT_TRUE(result.prompt_logprobs.empty());
  EXPECT_FALSE(result.last.has_logprobs);
  test.expect_idle();
}

TEST(Engine, SamplesWithEveryParameter) {
  TestEngine test;
  test.engine.start();
  std::mt19937 random(3);
  for (std::uint64_t id = 1; id <= 60; ++id) {
    const Request request = random_request(id, 200, random);
    const ReferenceOutput expected = reference_generate(request, fake_spec());
    const auto result = test.run(request);
    ASSERT_EQ(result.token_ids(), expected.tokens) << "request " << id;
    ASSERT_EQ(result.finish, expected.finish) << "request " << id;
  }
  test.expect_idle();
}

TEST(Engine, GoesOnWhereAnotherEngineStopped) {
  TestEngine test;
  test.engine.start();
  std::mt19937 random(4);
  for (std::uint64_t id = 1; id <= 60; ++id) {
    Request request = random_request(id, 200, random);
    const ReferenceOutput expected = reference_generate(request, fake_spec());
    if (expected.tokens.size() < 2) continue;
    const auto made = static_cast<std::ptrdiff_t>(1 + random() % (expected.tokens.size() - 1));
    request.prompt.insert(request.prompt.end(), expected.tokens.begin(), expected.tokens.begin() + made);
    request.num_resumed = made;
    request.max_tokens -= made;
    request.prompt_logprobs = -1;
    const auto result = test.run(request);
    ASSERT_EQ(result.token_ids(), std::vector(expected.tokens.begin() + made, expected.tokens.end()))
        << "request " << id;
    ASSERT_EQ(result.finish, expected.finish) << "request " << id;
  }
  test.expect_idle();
}

TEST(Engine, StopsAtTheEndOfSequence) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5}, 50);
  request.sampling.logit_bias = {{3, 100.0f}};  // the fake's end of sequence
  const auto result = test.run(request);
  EXPECT_EQ(result.token_ids(), (std::vector<std::int32_t>{3}));  // delivered, as the last
  EXPECT_EQ(result.finish, FinishReason::stop);

  request.id = 2;
  request.ignore_eos = true;
  EXPECT_EQ(test.run(request).token_ids(), std::vector<std::int32_t>(50, 3));
}

TEST(Engine, StopsAtStopTokensButNotBeforeMinTokens) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5}, 50);
  request.stop_token_ids = {9, 4};
  request.sampling.logit_bias = {{9, 100.0f}, {3, 90.0f}, {4, 80.0f}};
  EXPECT_EQ(test.run(request).token_ids(), (std::vector<std::int32_t>{9}));

  request.id = 2;
  request.min_tokens = 6;
  const auto result = test.run(request);
  ASSERT_EQ(result.tokens.size(), 7u);
  for (int i = 0; i < 6; ++i) {
    const std::int32_t token = result.tokens[i].token;
    EXPECT_TRUE(token != 9 && token != 3 && token != 4) << token;
  }
  EXPECT_EQ(result.tokens[6].token, 9);
  EXPECT_EQ(result.finish, FinishReason::stop);
}

TEST(Engine, AStopTokenAtTheLimitIsAStop) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5}, 1);
  request.sampling.logit_bias = {{3, 100.0f}};
  EXPECT_EQ(test.run(request).finish, FinishReason::stop);
}

TEST(Engine, GivesLogprobsOfTheModelsOwnDistribution) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5, 6}, 4);
  request.ignore_eos = true;
  request.logprobs = 3;
  request.sampling.temperature = 0.0f;
  request.sampling.logit_bias = {{11, 100.0f}};  // forces the token, but not its log probability
  const auto result = test.run(request);
  ASSERT_EQ(result.token_ids(), std::vector<std::int32_t>(4, 11));
  EXPECT_TRUE(result.last.has_logprobs);
  std::vector<std::int32_t> tokens = request.prompt;
  for (const TokenOutput& token : result.tokens) {
    std::vector<TokenLogprob> top;
    EXPECT_EQ(token.logprob, token_logprob(reference_logits(tokens, 50), 11, 3, top));
    EXPECT_LT(token.logprob, -1.0f);
    ASSERT_EQ(token.top.size(), 3u);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(token.top[i].token, top[i].token);
    tokens.push_back(11);
  }
}

TEST(Engine, ZeroAlternativesStillGiveTheTokensLogprob) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5}, 1);
  request.logprobs = 0;
  const auto result = test.run(request);
  EXPECT_TRUE(result.last.has_logprobs);
  EXPECT_LT(result.tokens[0].logprob, 0.0f);
  EXPECT_TRUE(result.tokens[0].top.empty());
}

TEST(Engine, ScoresAPromptWithoutGenerating) {
  EngineConfig options = small_options();
  options.num_pages = 100;
  options.max_batch_tokens = 512;
  TestEngine test(options);
  test.engine.start();
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < 200; ++i) prompt.push_back(i * 7 % 50);  // several chunks of 64 logit rows
  Request request = make_request(1, prompt, 0);
  request.prompt_logprobs = 2;
  const auto result = test.run(request);
  EXPECT_EQ(result.finish, FinishReason::length);
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_EQ(result.outputs.size(), 1u);
  EXPECT_GT(test.engine.stats().num_steps, 2u);
  ASSERT_EQ(result.prompt_logprobs.size(), prompt.size());
  EXPECT_EQ(result.prompt_logprobs[0].token, prompt[0]);
  EXPECT_TRUE(std::isnan(result.prompt_logprobs[0].logprob));
  for (std::size_t p = 1; p < prompt.size(); ++p) {
    std::vector<TokenLogprob> top;
    const std::vector<float> logits = reference_logits(std::span(prompt).first(p), 50);
    EXPECT_EQ(result.prompt_logprobs[p].token, prompt[p]);
    EXPECT_EQ(result.prompt_logprobs[p].logprob, token_logprob(logits, prompt[p], 2, top));
    EXPECT_EQ(top_ids(result.prompt_logprobs[p]), (std::vector<std::int32_t>{top[0].token, top[1].token}));
  }
  test.expect_idle();
}

TEST(Engine, PromptLogprobsComeWithTheFirstToken) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 2);
  request.ignore_eos = true;
  request.prompt_logprobs = 0;
  const auto result = test.run(request);
  EXPECT_EQ(result.outputs[0].prompt_logprobs.size(), 3u);
  EXPECT_TRUE(result.outputs[1].prompt_logprobs.empty());
  EXPECT_TRUE(result.outputs[0].prompt_logprobs[1].top.empty());
}

TEST(Engine, NothingToGenerateEndsWithThePrefill) {
  TestEngine test;
  test.engine.start();
  const auto result = test.run(make_request(1, {5, 6, 7}, 0));
  EXPECT_EQ(result.finish, FinishReason::length);
  EXPECT_TRUE(result.tokens.empty());
  test.expect_idle();
}

TEST(Engine, CountsAndTimes) {
  TestEngine test(small_options(), 1,
                  [](const StepBatch&) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
  Request request = make_request(1, std::vector<std::int32_t>(100, 5), 5);  // two prefill steps, four more of decode
  request.ignore_eos = true;
  test.engine.submit(request);
  EXPECT_EQ(test.engine.stats().num_waiting, 1);
  test.engine.start();
  test.collect_until_finished(1);
  const RequestOutput& last = test.results[1].last;
  EXPECT_GE(last.queue_seconds, 0.0);
  EXPECT_GE(last.prefill_seconds, 0.004);
  EXPECT_GE(last.decode_seconds, 0.008);
  const EngineStats stats = test.engine.stats();
  EXPECT_EQ(stats.num_steps, 6u);
  EXPECT_EQ(stats.prompt_tokens, 100u);
  EXPECT_EQ(stats.generated_tokens, 5u);
  EXPECT_GE(stats.step_seconds, 0.012);
  EXPECT_LE(stats.step_seconds, last.prefill_seconds + last.decode_seconds + 0.1);
}

TEST(Engine, TheEventIsReadableOnlyWhileOutputsWait) {
  TestEngine test;
  const auto readable = [&] {
    pollfd event{.fd = test.engine.event_fd(), .events = POLLIN, .revents = 0};
    return poll(&event, 1, 0) == 1;
  };
  EXPECT_FALSE(readable());
  test.engine.submit(make_request(1, {}, 1));  // refused at the door
  EXPECT_TRUE(readable());
  EXPECT_EQ(test.engine.take_outputs().size(), 1u);
  EXPECT_FALSE(readable());
  EXPECT_TRUE(test.engine.take_outputs().empty());
}

TEST(Engine, RefusesOptionsThatCannotWork) {
  const auto make = [](auto change) {
    EngineConfig options = small_options();
    change(options);
    TestEngine test(options);
  };
  EXPECT_THROW(make([](EngineConfig& o) { o.num_pages = 0; }), CheckError);
  EXPECT_THROW(make([](EngineConfig& o) { o.max_model_len = 257; }), CheckError);  // 64 pages of 4 hold 256
  EXPECT_THROW(make([](EngineConfig& o) { o.max_model_len = 0; }), CheckError);
  EXPECT_THROW(make([](EngineConfig& o) { o.max_batch_tokens = 0; }), CheckError);
}

}  // namespace
}  // namespace minisgl::testing_support
