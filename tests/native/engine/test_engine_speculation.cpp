// Requests get the same tokens with drafts, in fewer steps where answers come again.
#include <numeric>

#include "engine/engine_fixture.h"
#include "engine/speculation.h"

namespace minisgl::testing_support {
namespace {

// Steps of few rows take the same time, so drafts are worth it.
void take_time(const StepBatch&) {
  std::this_thread::sleep_for(std::chrono::microseconds(500));
}

struct Circumstances {
  const char* name;
  std::int64_t num_pages, max_running, max_batch_tokens;
};

// Any requests, each of them twice, and some of the second ones aborted.
class EngineSpeculation : public testing::TestWithParam<Circumstances> {
 protected:
  static EngineConfig options() {
    EngineConfig options = small_options();
    options.num_pages = GetParam().num_pages;
    options.max_model_len = 100;
    options.max_running = GetParam().max_running;
    options.max_batch_tokens = GetParam().max_batch_tokens;
    options.speculate = true;
    options.max_drafts = Speculation::kMostStepDrafts;
    return options;
  }

  static void expect_all(TestEngine& test) {
    constexpr std::uint64_t count = 80;
    std::vector<Request> requests = random_requests(count, 100, 31);
    for (std::uint64_t i = 0; i < count; ++i) {
      Request& again = requests.emplace_back(requests[i]);
      again.id += count;
      again.speculate = i % 5 != 0;
    }
    test.engine.start();
    for (std::uint64_t i = 0; i < count; ++i) test.engine.submit(requests[i]);
    test.collect_until_finished(count);
    std::mt19937 random(5);
    for (std::uint64_t i = count; i < 2 * count; ++i) test.engine.submit(requests[i]);
    std::vector<std::uint64_t> aborted;
    while (test.num_finished < 2 * count) {
      ASSERT_NO_FATAL_FAILURE(test.collect());
      const std::uint64_t id = count + 1 + random() % count;
      if (id % 4 != 0) continue;
      test.engine.abort(id);
      aborted.push_back(id);
    }
    std::int64_t num_drafts = 0, num_accepted = 0;
    ASSERT_EQ(test.engine.failure(), "");
    for (const Request& request : requests) {
      const TestEngine::Result& result = test.results[request.id];
      if (result.finish == FinishReason::abort) {
        const std::vector<std::int32_t> whole = reference_generate(request, fake_spec()).tokens;
        const std::vector<std::int32_t> got = result.token_ids();
        ASSERT_TRUE(got.size() <= whole.size() && std::equal(got.begin(), got.end(), whole.begin()));
      } else {
        ASSERT_NO_FATAL_FAILURE(expect_reference(result, request));
      }
      if (!request.speculate) EXPECT_EQ(result.last.num_drafts, 0);
      num_drafts += result.last.num_drafts;
      num_accepted += result.last.num_accepted;
    }
    test.engine.stop();
    const SpeculationCounts counts = test.engine.stats().speculation;
    EXPECT_LE(num_accepted, num_drafts);
    EXPECT_LE(num_drafts, static_cast<std::int64_t>(counts.draft_tokens));
    EXPECT_EQ(std::accumulate(counts.accepted_at.begin(), counts.accepted_at.end(), std::uint64_t{0}),
              counts.accepted_tokens);
    test.expect_idle();
  }
};

TEST_P(EngineSpeculation, DoesNotChangeTokens) {
  TestEngine test(options(), 2, take_time);
  expect_all(test);
}

TEST_P(EngineSpeculation, DoesNotChangeTokensOnADeviceThatRunsAhead) {
  TestEngine test(std::make_unique<AsyncDevice>(), options(), take_time);
  expect_all(test);
}

INSTANTIATE_TEST_SUITE_P(Circumstances, EngineSpeculation,
                         testing::Values(Circumstances{"roomy", 800, 32, 64}, Circumstances{"few_pages", 27, 8, 64},
                                         Circumstances{"few_rows", 200, 6, 7}),
                         [](const auto& info) { return info.param.name; });

TEST(Speculation, AnAnswerThatComesAgainTakesFewerSteps) {
  EngineConfig options = small_options();
  options.speculate = true;
  options.max_drafts = Speculation::kMostStepDrafts;
  TestEngine test(options, 1, take_time);
  test.engine.start();
  Request request = make_request(1, {5, 6, 7, 8}, 150);
  request.ignore_eos = true;
  const std::vector<std::int32_t> tokens = test.run(request).token_ids();
  const std::uint64_t steps = test.engine.stats().num_steps;
  request.id = 2;
  EXPECT_EQ(test.run(request).token_ids(), tokens);
  EXPECT_LT(test.engine.stats().num_steps - steps, 75u);
  EXPECT_GT(test.results[2].last.num_accepted, 75);
  // Nobody with another salt or share is told of it.
  request.id = 3;
  request.prefix_salt = {1, 2};
  EXPECT_EQ(test.run(request).token_ids(), tokens);
  EXPECT_LT(test.results[3].last.num_accepted, 30);
}

TEST(StepRowsCost, GuessesLowWhatWasNotSeen) {
  StepRowsCost cost;
  EXPECT_EQ(cost.predict(3), 0);
  for (int i = 0; i < 10; ++i) cost.learn(1, 1.0);
  EXPECT_EQ(cost.predict(1), 1.0);
  EXPECT_GE(cost.predict(4), 1.0);
  EXPECT_LT(cost.predict(4), 1.2);
  cost.learn(4, 3.0);
  EXPECT_EQ(cost.predict(4), 3.0);
  EXPECT_LT(cost.predict(3), 1.2);
  EXPECT_GE(cost.predict(5), 3.0);
  cost.learn(4, 100.0);  // held up once
  EXPECT_LT(cost.predict(4), 6.0);
}

}  // namespace
}  // namespace minisgl::testing_support
