// A request's tokens depend on the request alone: not on its company, the chunks, preemption or the number of threads.
#include <atomic>
#include <thread>

#include "engine/engine_fixture.h"

namespace minisgl::testing_support {
namespace {

struct Circumstances {
  const char* name;
  std::int64_t num_pages;
  int page_size;
  std::int64_t max_running, max_batch_tokens;
  int num_threads;
  bool preempts;  // for sure; elsewhere one may give way to another share
};

class EngineBatching : public testing::TestWithParam<Circumstances> {};

TEST_P(EngineBatching, DoesNotChangeTokens) {
  const Circumstances& with = GetParam();
  EngineConfig options = small_options();
  options.num_pages = with.num_pages;
  options.page_size = with.page_size;
  options.max_model_len = 100;
  options.max_running = with.max_running;
  options.max_batch_tokens = with.max_batch_tokens;
  TestEngine test(options, with.num_threads);
  const std::vector<Request> requests = random_requests(80, options.max_model_len, 11);
  for (const Request& request : requests) test.engine.submit(request);
  test.engine.start();
  test.collect_until_finished(requests.size());
  for (const Request& request : requests) {
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
  }
  if (with.preempts) {
    EXPECT_GT(test.engine.stats().num_preemptions, 0u);
  }
  test.expect_idle();
}

INSTANTIATE_TEST_SUITE_P(Circumstances, EngineBatching,
                         testing::Values(Circumstances{"alone", 7, 16, 1, 100, 1, false},
                                         Circumstances{"with_strangers", 1000, 4, 16, 64, 2, false},
                                         Circumstances{"tiny_chunks", 1000, 4, 16, 16, 2, false},
                                         Circumstances{"one_row_a_step", 1000, 4, 1, 1, 1, false},
                                         Circumstances{"short_of_pages", 34, 3, 16, 64, 2, true},
                                         Circumstances{"pages_of_one", 100, 1, 16, 33, 3, true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EnginePreemption, ARequestPreemptedManyTimesIsUnchanged) {
  EngineConfig options = small_options();
  options.num_pages = 26;
  options.page_size = 4;
  options.max_model_len = 100;
  TestEngine test(options);
  std::vector<Request> requests;
  for (std::uint64_t id = 1; id <= 12; ++id) {
    Request request = make_request(id, {static_cast<std::int32_t>(id), 5}, 90);
    request.ignore_eos = true;
    request.sampling.frequency_penalty = 0.3f;  // counts must survive, too
    request.sampling.repetition_penalty = 1.2f;
    request.prompt_logprobs = 1;
    requests.push_back(request);
    test.engine.submit(request);
  }
  test.engine.start();
  test.collect_until_finished(requests.size());
  for (const Request& request : requests) {
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
  }
  EXPECT_GT(test.engine.stats().num_preemptions, 20u);
  // What was recomputed is not counted twice.
  EXPECT_EQ(test.engine.stats().generated_tokens, 12u * 90u);
  EXPECT_EQ(test.engine.stats().prompt_tokens, 12u * 2u);
  test.expect_idle();
}

TEST(EngineSoak, AbortsAtAnyMomentLeaveNothingBehind) {
  EngineConfig options = small_options();
  options.num_pages = 40;
  options.max_model_len = 100;
  options.max_running = 8;
  options.max_batch_tokens = 24;
  TestEngine test(options);
  const std::vector<Request> requests = random_requests(600, options.max_model_len, 23);
  // Two threads submit, a third aborts what may or may not be live, this one takes outputs.
  std::atomic<std::uint64_t> submitted = 0;
  std::atomic<bool> done = false;
  const auto submit = [&](std::size_t first) {
    for (std::size_t i = first; i < requests.size(); i += 2) {
      test.engine.submit(requests[i]);
      ++submitted;
      if (i % 16 == 0) std::this_thread::yield();
    }
  };
  std::thread first(submit, 0), second(submit, 1);
  std::thread aborter([&] {
    std::mt19937 random(5);
    while (!done) {
      test.engine.abort(1 + random() % std::max<std::uint64_t>(1, submitted));
      test.engine.stats();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  // Some are there before the first step, and give way to each other; some of these are aborted for sure.
  while (submitted < 100) std::this_thread::yield();
  for (std::uint64_t id = 1; id <= 4; ++id) test.engine.abort(id);
  test.engine.start();
  test.collect_until_finished(requests.size());
  done = true;
  first.join();
  second.join();
  aborter.join();

  std::size_t num_aborted = 0;
  for (const Request& request : requests) {
    const auto& result = test.results[request.id];
    const ReferenceOutput expected = reference_generate(request, fake_spec());
    const std::vector<std::int32_t> tokens = result.token_ids();
    if (result.finish == FinishReason::abort) {
      ++num_aborted;
      ASSERT_LE(tokens.size(), expected.tokens.size());
      ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.tokens.begin())) << request.id;
    } else {
      ASSERT_EQ(result.finish, expected.finish) << request.id << " " << result.last.error;
      ASSERT_EQ(tokens, expected.tokens) << request.id;
    }
  }
  EXPECT_GT(num_aborted, 0u);
  EXPECT_GT(test.engine.stats().num_preemptions, 0u);
  test.expect_idle();
}

TEST(EngineSoak, AStormOfAborts) {
  TestEngine test;
  test.engine.start();
  for (std::uint64_t id = 1; id <= 900; ++id) {
    test.engine.submit(make_request(id, {5, 6, 7}, 200));
    test.engine.abort(id);
  }
  test.collect_until_finished(900);
  test.expect_idle();
}

}  // namespace
}  // namespace minisgl::testing_support
