// Steps planned while another runs, on a device that shows nothing before it is asked: the same tokens as ever, nothing
// after an end, and no page lost.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_fixture.h"
#include "engine/letters.h"

namespace minisgl::testing_support {
namespace {

using Pace = AsyncDevice::Pace;

struct Circumstances {
  const char* name;
  Pace pace;
  std::int64_t num_pages;
  int page_size;
  std::int64_t max_running, max_batch_tokens;
  bool preempts;  // for sure; elsewhere one may give way to another share
};

class EngineOverlap : public testing::TestWithParam<Circumstances> {};

TEST_P(EngineOverlap, DoesNotChangeTokens) {
  const Circumstances& with = GetParam();
  EngineConfig options = small_options();
  options.num_pages = with.num_pages;
  options.page_size = with.page_size;
  options.max_model_len = 100;
  options.max_running = with.max_running;
  options.max_batch_tokens = with.max_batch_tokens;
  auto device = std::make_unique<AsyncDevice>(with.pace);
  const AsyncDevice& observed = *device;
  TestEngine test(std::move(device), options);
  const std::vector<Request> requests = random_requests(120, options.max_model_len, 11);
  for (const Request& request : requests) test.engine.submit(request);
  test.engine.start();
  test.collect_until_finished(requests.size());
  std::uint64_t num_tokens = 0;
  for (const Request& request : requests) {
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
    num_tokens += test.results[request.id].tokens.size();
  }
  test.engine.stop();
  EXPECT_EQ(test.engine.stats().generated_tokens, num_tokens);  // what was computed for nothing is not counted
  if (with.preempts) {
    EXPECT_GT(test.engine.stats().num_preemptions, 0u);
  }
  EXPECT_EQ(observed.most_in_flight(), 2);
  test.expect_idle();
}

INSTANTIATE_TEST_SUITE_P(Circumstances, EngineOverlap,
                         testing::Values(Circumstances{"alone", Pace::at_once, 7, 16, 1, 100, false},
                                         Circumstances{"with_strangers", Pace::dawdling, 1000, 4, 16, 64, false},
                                         Circumstances{"tiny_chunks", Pace::when_waited_for, 1000, 4, 16, 16, false},
                                         Circumstances{"fewer_rows_than_sequences", Pace::at_once, 1000, 4, 9, 5,
                                                       false},
                                         Circumstances{"short_of_pages", Pace::when_waited_for, 34, 3, 16, 64, true},
                                         Circumstances{"pages_of_one", Pace::dawdling, 100, 1, 16, 33, true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EngineOverlapEnds, WhatIsKnownAheadIsNotComputed) {
  TestEngine test(std::make_unique<AsyncDevice>(Pace::when_waited_for));
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 12);
  request.ignore_eos = true;
  test.run(request);
  test.engine.stop();
  EXPECT_EQ(test.engine.stats().num_steps, 12u);
  test.expect_idle();
}

TEST(EngineOverlapEnds, AStopTokenIsLearntOneStepLate) {
  TestEngine test(std::make_unique<AsyncDevice>(Pace::when_waited_for));
  test.engine.start();
  Request request = make_request(1, {5}, 50);
  request.sampling.logit_bias = {{3, 100.0f}};  // the fake's end of sequence
  const auto result = test.run(request);
  EXPECT_EQ(result.token_ids(), (std::vector<std::int32_t>{3}));
  EXPECT_EQ(result.finish, FinishReason::stop);
  test.engine.stop();
  EXPECT_EQ(test.engine.stats().num_steps, 2u);
  EXPECT_EQ(test.engine.stats().generated_tokens, 1u);
  test.expect_idle();
}

// The id of a request is used again as soon as its end is seen, while the device still works for its predecessor.
TEST(EngineOverlapEnds, AnIdIsUsedAgainAtOnce) {
  TestEngine test(std::make_unique<AsyncDevice>(Pace::dawdling));
  test.engine.start();
  std::mt19937 random(3);
  for (int turn = 0; turn < 200; ++turn) {
    Request request = random_request(1, 60, random);
    request.min_tokens = 0;
    request.ignore_eos = false;
    test.results.clear();
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.run(request), request));
  }
  test.engine.stop();
  test.expect_idle();
}

TEST(EngineOverlapEnds, ANewcomerWaitsForTheStepsInFlightAlone) {
  // Holds the engine at the moment when it launches the tenth step: the ninth is in flight then.
  std::mutex mutex;
  std::condition_variable changed;
  bool arrived = false, open = false;
  std::vector<std::int64_t> rows;  // of each step
  TestEngine test(std::make_unique<AsyncDevice>(Pace::when_waited_for), small_options(), [&](const StepBatch& batch) {
    std::unique_lock lock(mutex);
    rows.push_back(std::ssize(batch.tokens));
    if (rows.size() != 10) return;
    arrived = true;
    changed.notify_all();
    changed.wait(lock, [&] { return open; });
  });
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 40);
  request.ignore_eos = true;
  test.engine.submit(request);
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return arrived; });
    request.id = 2;
    test.engine.submit(request);
    open = true;
  }
  changed.notify_all();
  test.collect_until_finished(2);
  test.engine.stop();
  EXPECT_EQ(rows[9], 1);
  EXPECT_EQ(rows[10], 1 + 3);
}

TEST(EngineOverlapOption, OffMeansOneStepAtATime) {
  EngineConfig options = small_options();
  options.overlap = false;
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  const AsyncDevice& observed = *device;
  TestEngine test(std::move(device), options);
  const std::vector<Request> requests = random_requests(40, 100, 5);
  for (const Request& request : requests) test.engine.submit(request);
  test.engine.start();
  test.collect_until_finished(requests.size());
  for (const Request& request : requests) {
    ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
  }
  EXPECT_EQ(observed.most_in_flight(), 1);
  test.expect_idle();
}

TEST(EngineOverlapFailure, OfTheDeviceEndsEverybody) {
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  AsyncDevice& failing = *device;
  int steps = 0;
  TestEngine test(std::move(device), small_options(), [&](const StepBatch&) {
    if (++steps == 5) failing.enqueue([](const StepBatch&) { throw std::runtime_error("the device is gone"); });
  });
  test.engine.start();
  for (std::uint64_t id = 1; id <= 40; ++id) {
    Request request = make_request(id, {5, 6, 7}, 200);
    request.ignore_eos = true;
    test.engine.submit(request);
  }
  test.collect_until_finished(40);
  for (const auto& [id, result] : test.results) {
    EXPECT_EQ(result.last.error, "the engine failed: the device is gone");
    EXPECT_LE(result.tokens.size(), 4u);
  }
}

TEST(EngineOverlapSoak, AbortsAtAnyMomentLeaveNothingBehind) {
  EngineConfig options = small_options();
  options.num_pages = 40;
  options.max_model_len = 100;
  options.max_running = 8;
  options.max_batch_tokens = 24;
  TestEngine test(std::make_unique<AsyncDevice>(Pace::dawdling), options);
  const std::vector<Request> requests = random_requests(600, options.max_model_len, 23);
  std::atomic<std::uint64_t> submitted = 0;
  std::atomic<bool> done = false;
  std::thread submitter([&] {
    for (const Request& request : requests) {
      test.engine.submit(request);
      ++submitted;
    }
  });
  std::thread aborter([&] {
    std::mt19937 random(5);
    while (!done) {
      test.engine.abort(1 + random() % std::max<std::uint64_t>(1, submitted));
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  });
  // Some are there before the first step, and give way to each other; some of these are aborted for sure.
  while (submitted < 100) std::this_thread::yield();
  for (std::uint64_t id = 1; id <= 4; ++id) test.engine.abort(id);
  test.engine.start();
  test.collect_until_finished(requests.size());
  done = true;
  submitter.join();
  aborter.join();

  std::size_t num_aborted = 0;
  for (const Request& request : requests) {
    const auto& result = test.results[request.id];
    if (result.finish != FinishReason::abort) {
      ASSERT_NO_FATAL_FAILURE(expect_reference(result, request));
      continue;
    }
    ++num_aborted;
    const std::vector<std::int32_t> tokens = result.token_ids(),
                                    expected = reference_generate(request, fake_spec()).tokens;
    ASSERT_LE(tokens.size(), expected.size());
    ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin())) << request.id;
  }
  EXPECT_GT(num_aborted, 0u);
  test.engine.stop();
  EXPECT_GT(test.engine.stats().num_preemptions, 0u);
  test.expect_idle();
}

// Sequences that were preempted are overtaken by others' here, and a device has counts for as many as may run with
// them.
TEST(EngineOverlap, CountsForPenaltiesAreTakenByThoseThatRun) {
  for (const std::int64_t max_penalized : {6, 2}) {
    EngineConfig options = small_options();
    options.num_pages = 40;
    options.max_model_len = 60;
    options.max_running = 6;
    options.max_penalized = max_penalized;
    auto owner = std::make_unique<AsyncDevice>();
    const AsyncDevice& device = *owner;
    TestEngine test(std::move(owner), options);
    std::vector<Request> requests = random_requests(60, options.max_model_len, 3);
    for (Request& request : requests) {
      if (request.id % 3 > 0) {
        request.sampling.repetition_penalty = 1.2f;
        request.sampling.frequency_penalty = 0.3f;
      }
      test.engine.submit(request);
    }
    test.engine.start();
    test.collect_until_finished(requests.size());
    for (const Request& request : requests) {
      ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request));
    }
    EXPECT_GT(test.engine.stats().num_preemptions, 5u);
    EXPECT_LE(device.most_seen(), max_penalized);
    EXPECT_GE(device.most_seen(), 2);
    test.expect_idle();
  }
}

// Long steps that a newcomer waits for, at the least of some tries.
std::size_t least_wait(const std::string& grammar) {
  std::mutex mutex;
  std::vector<std::size_t> rows;  // of the steps that were launched
  EngineConfig options = small_options();
  options.num_pages = 1000;
  auto owner = std::make_unique<AsyncDevice>();
  AsyncDevice& device = *owner;
  TestEngine test(std::move(owner), options, [&](const StepBatch& batch) {
    const std::lock_guard lock(mutex);
    rows.push_back(batch.tokens.size());
  });
  test.engine.start();
  if (!grammar.empty()) test.engine.open_grammars(library_path(), letters());
  constexpr std::uint64_t num_long = 10;
  for (std::uint64_t id = 1; id <= num_long; ++id) {
    Request request = make_request(id, {static_cast<std::int32_t>(id), 7}, 250);
    request.ignore_eos = true;
    request.grammar = grammar;
    test.engine.submit(request);
  }
  while (test.results[num_long].tokens.size() < 3 && !testing::Test::HasFatalFailure()) test.collect();
  device.set_row_time(std::chrono::milliseconds(4));
  std::size_t least = 100;
  for (std::uint64_t id = num_long + 1; id <= num_long + 8 && least > 1; ++id) {
    for (int i = 0; i < 8; ++i) test.collect();  // newcomers' steps are 250 ms apart
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const std::size_t num_done = test.engine.stats().num_steps;
    Request request = make_request(id, {5, 6, 7}, 1);
    request.standing.share = 1;
    test.engine.submit(request);
    while (test.results[id].finish == FinishReason::none && !testing::Test::HasFatalFailure()) test.collect();
    const std::lock_guard lock(mutex);
    const auto own = std::find(rows.begin() + static_cast<std::ptrdiff_t>(num_done), rows.end(), 3u);
    least = std::min(least, static_cast<std::size_t>(own - rows.begin()) - num_done);
  }
  return least;
}

// A long step runs when the newcomer comes. Its own is the next: nothing is launched ahead before it must be.
TEST(EngineOverlap, ANewcomerWaitsForTheStepThatRunsAndNoOther) {
  EXPECT_EQ(least_wait(""), 1u);
}

// Masks are made early in a long step, and that launches nothing.
TEST(EngineOverlap, ANewcomerWaitsForNoOtherStepWhereMasksCome) {
  MINISGL_NEEDS_LLGUIDANCE();
  EXPECT_EQ(least_wait("start: /[a-m]{300}/"), 1u);
}

}  // namespace
}  // namespace minisgl::testing_support
