// The prefix cache as a request sees it: the same tokens with and without, what was found, and who shares with whom.
#include "engine/engine_fixture.h"

namespace minisgl::testing_support {
namespace {

std::vector<std::int32_t> prompt_of(std::size_t length, std::int32_t first = 5) {
  std::vector<std::int32_t> prompt(length);
  for (std::size_t i = 0; i < length; ++i) prompt[i] = static_cast<std::int32_t>((first + 7 * i) % 50);
  return prompt;
}

TEST(EnginePrefix, AConversationGoesOnWhereItWas) {
  TestEngine test;
  test.engine.start();
  Request turn = make_request(1, prompt_of(30), 20);
  turn.ignore_eos = true;
  for (std::uint64_t id = 1; id <= 5; ++id) {
    turn.id = id;
    const TestEngine::Result result = test.run(turn);
    expect_reference(result, turn);
    // All but the last token of the turn before is there: full pages of 4, and a copy of a page that is half full.
    const auto known = id == 1 ? 0 : std::ssize(turn.prompt) - 6 - 1;
    EXPECT_EQ(num_cached(result), known % 4 == 1 ? known - 1 : known) << "turn " << id;
    const std::vector<std::int32_t> answer = result.token_ids();
    turn.prompt.insert(turn.prompt.end(), answer.begin(), answer.end());
    for (std::int32_t token = 0; token < 6; ++token) turn.prompt.push_back(token);
  }
  const EngineStats stats = test.engine.stats();
  EXPECT_EQ(stats.prefix_queries, 30u + 56u + 82u + 108u + 134u);
  EXPECT_GT(stats.prefix_hits, 300u);
  EXPECT_EQ(stats.prefix_evictions, 0u);
  EXPECT_GT(stats.pages_cached, 30);
  test.expect_idle();
}

TEST(EnginePrefix, OnlyRequestsWithTheSameSaltShare) {
  TestEngine test;
  test.engine.start();
  std::uint64_t id = 0;
  std::vector<std::int64_t> found;
  for (const std::uint64_t salt : {0, 1, 2, 1, 0}) {
    Request request = make_request(++id, prompt_of(21), 3);
    request.prefix_salt = {salt, 0};
    const TestEngine::Result result = test.run(request);
    expect_reference(result, request);
    found.push_back(num_cached(result));
  }
  EXPECT_EQ(found, (std::vector<std::int64_t>{0, 0, 0, 20, 20}));
}

TEST(EnginePrefix, TheSameTokensWithAndWithout) {
  for (const bool prefix_cache : {true, false}) {
    EngineConfig options = small_options();
    options.num_pages = 60;
    options.max_model_len = 200;
    options.prefix_cache = prefix_cache;
    TestEngine test(options);
    const std::vector<Request> requests = random_requests(200, options.max_model_len, 31);
    for (const Request& request : requests) test.engine.submit(request);
    test.engine.start();
    test.collect_until_finished(requests.size());
    std::int64_t found = 0;
    for (const Request& request : requests) {
      ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
      ASSERT_LT(num_cached(test.results[request.id]), std::ssize(request.prompt));
      found += num_cached(test.results[request.id]);
    }
    const EngineStats stats = test.engine.stats();
    EXPECT_GT(stats.num_preemptions, 0u);
    EXPECT_EQ(found > 200, prefix_cache);
    EXPECT_EQ(stats.prefix_evictions > 1000, prefix_cache);
    EXPECT_EQ(stats.prefix_hits, static_cast<std::uint64_t>(found));
    EXPECT_EQ(stats.pages_cached > 0, prefix_cache);
    test.expect_idle();
  }
}

// What was generated before isn't the prompt's.
TEST(EnginePrefix, AResumedRequestCountsItsPrompt) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, prompt_of(20), 10);
  request.ignore_eos = true;
  const std::vector<std::int32_t> answer = test.run(request).token_ids();
  Request resumed = request;
  resumed.id = 2;
  resumed.prompt.insert(resumed.prompt.end(), answer.begin(), answer.begin() + 8);
  resumed.num_resumed = 8;
  const TestEngine::Result result = test.run(resumed);
  EXPECT_EQ(result.token_ids(), std::vector<std::int32_t>(answer.begin() + 8, answer.end()));
  EXPECT_EQ(num_cached(result), 20);
}

}  // namespace
}  // namespace minisgl::testing_support
