// The second tier of the prefix cache as requests see it: pages that go to the host's memory and come back while steps
// run, on a device that copies in its own time, and never another token.
#include <atomic>
#include <chrono>
#include <functional>

#include "comm/plan_ends.h"
#include "engine/engine_fixture.h"
#include "engine/follower.h"

namespace minisgl::testing_support {
namespace {

using Pace = AsyncDevice::Pace;

EngineConfig host_options(std::int64_t num_host_pages = 20'000) {
  EngineConfig options = small_options();
  options.num_pages = 70;
  options.max_model_len = 200;
  options.max_running = 6;
  options.num_host_pages = num_host_pages;
  return options;
}

std::int64_t num_cached(const TestEngine::Result& result) {
  std::int64_t count = 0;
  for (const RequestOutput& output : result.outputs) count += output.num_cached;
  return count;
}

// Starts the engine once the first requests are there, submits so many at a time, and aborts some of them.
void serve(TestEngine& test, const std::vector<Request>& requests, bool with_aborts = false) {
  std::size_t num_submitted = 0;
  while (num_submitted < requests.size()) {
    for (int i = 0; i < 12 && num_submitted < requests.size(); ++i) {
      test.engine.submit(requests[num_submitted++]);
      if (with_aborts && num_submitted % 5 == 0) test.engine.abort(requests[num_submitted - 3].id);
    }
    if (num_submitted == 12) test.engine.start();
    ASSERT_NO_FATAL_FAILURE(test.collect_until_finished(num_submitted - 4));
  }
  ASSERT_NO_FATAL_FAILURE(test.collect_until_finished(requests.size()));
}

std::vector<std::int32_t> prompt_of(std::int32_t first) {
  std::vector<std::int32_t> prompt(161);
  for (std::size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<std::int32_t>((static_cast<std::size_t>(first) + i * i) % 50);
  }
  return prompt;
}

// Three prompts of which the device has no room for two take turns until the condition holds: the host gives them back
// sooner or later, however late its copies are.
void take_turns_until(TestEngine& test, const std::function<bool(const EngineStats&)>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (std::uint64_t id = 1001; !condition(test.engine.stats()); ++id) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the host gives nothing back";
    test.run(make_request(id, prompt_of(static_cast<std::int32_t>(id % 3)), 2));
  }
}

class EngineHostTier : public testing::TestWithParam<Pace> {};

TEST_P(EngineHostTier, DoesNotChangeTokens) {
  for (const std::int64_t num_host_pages : {20000, 100}) {
    TestEngine test(std::make_unique<AsyncDevice>(GetParam()), host_options(num_host_pages));
    const std::vector<Request> requests = random_requests(100, test.engine.config().max_model_len, 41);
    ASSERT_NO_FATAL_FAILURE(serve(test, requests));
    for (const Request& request : requests) {
      ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
    }
    const bool evicts = num_host_pages == 100;
    ASSERT_NO_FATAL_FAILURE(take_turns_until(test, [&](const EngineStats& now) {
      return now.host_hits > 0 && now.host_pages_ready == num_host_pages && (now.host_evictions > 0 || !evicts);
    }));
    test.expect_idle();
    const EngineStats stats = test.engine.stats();
    EXPECT_GT(stats.host_queries, stats.host_hits);
    EXPECT_EQ(stats.host_evictions > 0, evicts);
    EXPECT_GT(stats.host_bytes_out, 0u);
    EXPECT_GE(stats.host_bytes_in, stats.host_hits * 16);  // a token of the fake model has 16 bytes
  }
}

// Whoever leaves while its pages are on their way leaves nothing behind.
TEST_P(EngineHostTier, SurvivesAborts) {
  TestEngine test(std::make_unique<AsyncDevice>(GetParam()), host_options());
  const std::vector<Request> requests = random_requests(100, test.engine.config().max_model_len, 43);
  ASSERT_NO_FATAL_FAILURE(serve(test, requests, true));
  int num_aborted = 0;
  for (const Request& request : requests) {
    const TestEngine::Result& result = test.results[request.id];
    num_aborted += result.finish == FinishReason::abort;
    if (result.finish == FinishReason::abort) continue;
    ASSERT_NO_FATAL_FAILURE(expect_reference(result, request));
  }
  EXPECT_GE(num_aborted, 2);  // those that were aborted before the engine started
  ASSERT_NO_FATAL_FAILURE(take_turns_until(test, [](const EngineStats& now) { return now.host_hits > 0; }));
  test.expect_idle();
}

INSTANTIATE_TEST_SUITE_P(Paces, EngineHostTier, testing::Values(Pace::at_once, Pace::dawdling, Pace::when_waited_for));

// What the requests so far left is copied while the engine has nothing else to do.
void wait_for_copies(const TestEngine& test, std::uint64_t num_pages) {
  const std::uint64_t bytes = num_pages * 64;
  EXPECT_TRUE(eventually([&] { return test.engine.stats().host_bytes_out >= bytes; })) << num_pages << " pages";
}

// Of two prompts only one fits the device.
std::int64_t found_again(double page_seconds) {
  auto device = std::make_unique<AsyncDevice>();
  device->host_page_seconds = page_seconds;
  EngineConfig options = host_options();
  options.num_pages = 50;
  TestEngine test(std::move(device), options);
  test.engine.start();
  std::uint64_t id = 0;
  std::int64_t found = 0;
  for (const std::int32_t first : {1, 2, 3, 1}) {
    Request request = make_request(++id, prompt_of(first), 2);
    const TestEngine::Result result = test.run(request);
    expect_reference(result, request);
    found = num_cached(result);
    wait_for_copies(test, std::min<std::uint64_t>(id, 3) * 40);
  }
  return found;
}

TEST(EngineHostTierCases, APromptThatWasGivenUpComesBack) {
  EXPECT_EQ(found_again(0), 160);
}

TEST(EngineHostTierCases, NobodyWaitsWhereComputingIsQuicker) {
  EXPECT_LT(found_again(10), 160);
}

// The device has room for one prompt, which takes several orders of copies; each takes the place of the other.
TEST(EngineHostTierCases, LongPromptsTakeTurns) {
  EngineConfig options = host_options(2048);
  options.num_pages = 1004;
  options.max_model_len = 4010;
  options.max_batch_tokens = 512;
  TestEngine test(std::make_unique<AsyncDevice>(), options);
  test.engine.start();
  std::mt19937 random(3);
  std::vector<std::vector<std::int32_t>> prompts(3, std::vector<std::int32_t>(4000));
  for (auto& prompt : prompts) std::ranges::generate(prompt, [&] { return static_cast<std::int32_t>(random() % 50); });
  std::uint64_t id = 0;
  for (const auto& prompt : prompts) {
    Request request = make_request(++id, prompt, 1);
    expect_reference(test.run(request), request);
    wait_for_copies(test, id * 1000);
  }
  for (int round = 0; round < 4; ++round) {
    Request request = make_request(++id, prompts[static_cast<std::size_t>(1 + round % 2)], 1);
    request.prompt.push_back(static_cast<std::int32_t>(id));
    const TestEngine::Result result = test.run(request);
    expect_reference(result, request);
    EXPECT_EQ(num_cached(result), 4000) << "round " << round;
  }
  EXPECT_GE(test.engine.stats().host_hits, 4u * 990 * 4);
}

TEST(EngineHostTierCases, AnEngineEndsWithCopiesUnderWay) {
  for (unsigned seed = 0; seed < 6; ++seed) {
    TestEngine test(std::make_unique<AsyncDevice>(Pace::dawdling), host_options());
    test.engine.start();
    for (const Request& request : random_requests(40, 200, seed)) test.engine.submit(request);
    test.collect_until_finished(5 + 2 * seed);
    if (seed % 2 == 0) test.engine.stop();
  }
}

TEST(EngineHostTierCases, AnEngineThatDiesEndsItsRequests) {
  std::atomic<int> num_steps = 0;
  TestEngine test(std::make_unique<AsyncDevice>(Pace::dawdling), host_options(), [&](const StepBatch&) {
    if (++num_steps == 60) throw std::runtime_error("the device is gone");
  });
  test.engine.start();
  const std::vector<Request> requests = random_requests(100, 200, 5);
  for (const Request& request : requests) test.engine.submit(request);
  test.collect_until_finished(requests.size());
  EXPECT_EQ(test.engine.failure(), "the device is gone");
}

// What a rank's device computed, with every token known: a page that holds the wrong thing changes what it draws.
class Tokens {
 public:
  std::unique_ptr<Model> model_on(AsyncDevice& device) {
    return std::make_unique<FakeModel>(
        fake_spec(), nullptr,
        [this, &device](FakeModel::Compute compute) {
          device.enqueue([this, compute = std::move(compute)](const StepBatch& batch) {
            tokens.emplace_back(batch.tokens.begin(), batch.tokens.end());
            compute(batch);
          });
        },
        &device);
  }
  std::vector<std::vector<std::int32_t>> tokens;  // by step
};

// Calls serve(rank 0) with a follower beside it, which computes the same.
template <typename Serve>
void serve_on_two_ranks(const EngineConfig& options, Pace primary_pace, Pace follower_pace, const Serve& serve) {
  const FileDescriptor memory = ring_memory(1 << 16);
  Tokens primary, other;
  auto device = std::make_unique<AsyncDevice>(follower_pace);
  auto model = other.model_on(*device);
  Follower follower(std::move(model), std::move(device), options, open_ring_receiver(memory.get(), 1, {.size = 2}));
  follower.start();
  PlanSenders senders;
  senders.push_back(open_ring_sender(memory.get(), {.size = 2}));
  device = std::make_unique<AsyncDevice>(primary_pace);
  model = primary.model_on(*device);
  TestEngine test(std::move(model), std::move(device), options, std::move(senders));
  ASSERT_NO_FATAL_FAILURE(serve(test));
  test.engine.stop();
  pollfd event{.fd = follower.event_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&event, 1, 30'000), 1) << "the follower goes on";
  EXPECT_EQ(follower.failure(), "");
  EXPECT_TRUE(other.tokens == primary.tokens);
}

TEST(EngineHostTierCases, EveryRankCopiesItsOwnPages) {
  for (const auto& [primary_pace, follower_pace] :
       {std::pair(Pace::at_once, Pace::dawdling), std::pair(Pace::dawdling, Pace::at_once),
        std::pair(Pace::when_waited_for, Pace::when_waited_for)}) {
    serve_on_two_ranks(host_options(), primary_pace, follower_pace, [](TestEngine& test) {
      const std::vector<Request> requests = random_requests(60, test.engine.config().max_model_len, 47);
      ASSERT_NO_FATAL_FAILURE(serve(test, requests));
      for (const Request& request : requests) {
        ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
      }
      ASSERT_NO_FATAL_FAILURE(take_turns_until(test, [](const EngineStats& now) { return now.host_hits > 0; }));
    });
  }
}

// Rank 0 has taken its last step and copies what it wrote, while a follower has the step still before it.
TEST(EngineHostTierCases, AFollowerEndsTheStepThatItsCopiesRead) {
  EngineConfig options = host_options();
  options.num_pages = 50;
  serve_on_two_ranks(options, Pace::at_once, Pace::when_waited_for, [](TestEngine& test) {
    test.engine.start();
    std::uint64_t id = 0;
    for (const std::int32_t first : {1, 2, 3, 1, 2, 3}) {
      Request request = make_request(++id, prompt_of(first), 4);
      expect_reference(test.run(request), request);
      wait_for_copies(test, std::min<std::uint64_t>(id, 3) * 40);
    }
    EXPECT_GT(test.engine.stats().host_hits, 300u);
  });
}

}  // namespace
}  // namespace minisgl::testing_support
