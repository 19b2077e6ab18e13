// The door, aborts, stop and failure: every request gets exactly one end.
#include <atomic>
#include <thread>

#include "engine/engine_fixture.h"
#include "engine/gate.h"

namespace minisgl::testing_support {
namespace {

Request long_request(std::uint64_t id) {
  Request request = make_request(id, {5, 6, 7}, 200);
  request.ignore_eos = true;
  return request;
}

TEST(EngineDoor, RefusesWithTheValue) {
  TestEngine test;
  test.engine.start();
  const auto result = test.run(make_request(1, {5, 50}, 1));
  EXPECT_EQ(result.finish, FinishReason::error);
  EXPECT_EQ(result.last.error_code, ErrorCode::invalid_request);
  EXPECT_EQ(result.last.error, "prompt has token id 50, outside the vocabulary of 50");
  test.expect_idle();
}

TEST(EngineDoor, AcceptsTheLargestAndRefusesOneMore) {
  TestEngine test;
  test.engine.start();
  Request request = make_request(1, std::vector<std::int32_t>(200, 5), 56);
  request.ignore_eos = true;
  EXPECT_EQ(test.run(request).finish, FinishReason::length);
  EXPECT_EQ(test.results[1].tokens.size(), 56u);
  request.id = 2;
  request.max_tokens = 57;
  EXPECT_EQ(test.run(request).last.error_code, ErrorCode::too_long);
  EXPECT_EQ(test.results[2].last.error,
            "the prompt has 200 tokens and max_tokens is 57; together they may be at most 256");
}

TEST(EngineDoor, RefusesOneMoreThanItHolds) {
  EngineConfig options = small_options();
  options.max_running = 1;
  options.max_waiting = 2;
  TestEngine test(options);
  for (std::uint64_t id = 1; id <= 5; ++id) test.engine.submit(long_request(id));
  test.collect();
  EXPECT_EQ(test.results[4].last.error_code, ErrorCode::queue_full);
  EXPECT_EQ(test.results[5].last.error, "the queue is full: 1 requests run and 2 wait");
  test.engine.start();
  test.collect_until_finished(5);
  for (std::uint64_t id = 1; id <= 3; ++id) EXPECT_EQ(test.results[id].finish, FinishReason::length);
  EXPECT_EQ(test.run(long_request(6)).finish, FinishReason::length);  // there is room again
}

TEST(EngineDoor, RefusesADuplicateAndLeavesTheFirstAlone) {
  TestEngine test;
  test.engine.submit(long_request(1));
  test.engine.submit(long_request(1));
  const std::vector<RequestOutput> refused = test.engine.take_outputs();
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].error, "a request with id 1 is live");
  test.engine.start();
  test.collect_until_finished(1);
  EXPECT_EQ(test.results[1].tokens.size(), 200u);
  test.results.clear();
  EXPECT_EQ(test.run(long_request(1)).finish, FinishReason::length);  // an id may be used again after its end
}

TEST(EngineAbort, EndsARequestInTheMiddleOfAStep) {
  Gate gate;
  TestEngine test(small_options(), 2, [&](const StepBatch&) { gate.pass(); });
  test.engine.start();
  test.engine.submit(long_request(1));
  gate.wait_for_arrival();
  test.engine.abort(1);
  test.engine.abort(1);
  EXPECT_TRUE(test.engine.take_outputs().empty());  // not before the step's end
  gate.open();
  test.collect_until_finished(1);
  EXPECT_EQ(test.results[1].finish, FinishReason::abort);
  EXPECT_LE(test.results[1].tokens.size(), 1u);
  EXPECT_TRUE(test.results[1].last.tokens.empty());
  test.expect_idle();
  EXPECT_EQ(test.engine.stats().num_steps, 1u);
}

TEST(EngineAbort, EndsARequestThatWaits) {
  EngineConfig options = small_options();
  options.max_running = 1;
  TestEngine test(options);
  for (std::uint64_t id = 1; id <= 3; ++id) test.engine.submit(long_request(id));
  test.engine.abort(2);
  test.engine.abort(77);  // never heard of
  test.engine.start();
  test.collect_until_finished(3);
  EXPECT_EQ(test.results[1].finish, FinishReason::length);
  EXPECT_EQ(test.results[2].finish, FinishReason::abort);
  EXPECT_TRUE(test.results[2].tokens.empty());
  EXPECT_EQ(test.results[3].finish, FinishReason::length);
  EXPECT_FALSE(test.results.contains(77));
}

TEST(EngineStop, EndsEverybodyWithAbort) {
  TestEngine test;
  test.engine.start();
  for (std::uint64_t id = 1; id <= 50; ++id) test.engine.submit(long_request(id));
  test.collect();
  test.engine.stop();
  test.engine.stop();
  test.collect_until_finished(50);
  for (const auto& [id, result] : test.results) {
    EXPECT_TRUE(result.finish == FinishReason::abort || result.finish == FinishReason::length) << id;
  }
  test.expect_idle();
  EXPECT_EQ(test.engine.failure(), "");
  EXPECT_EQ(test.run(long_request(99)).last.error, "the engine is stopped");
  EXPECT_THROW(test.engine.start(), CheckError);
}

TEST(EngineStop, EndsWhatWasSubmittedBeforeAStartThatNeverCame) {
  TestEngine test;
  test.engine.submit(long_request(1));
  test.engine.stop();
  test.collect_until_finished(1);
  EXPECT_EQ(test.results[1].finish, FinishReason::abort);
  test.expect_idle();
}

TEST(EngineStop, StartsOnlyOnce) {
  TestEngine test;
  test.engine.start();
  EXPECT_THROW(test.engine.start(), CheckError);
}

TEST(EngineStop, TheDestructorStops) {
  std::atomic<int> steps = 0;
  {
    TestEngine test(small_options(), 2, [&](const StepBatch&) { ++steps; });
    test.engine.start();
    for (std::uint64_t id = 1; id <= 20; ++id) test.engine.submit(long_request(id));
    test.collect();
  }
  EXPECT_GT(steps, 0);
}

TEST(EngineFailure, EndsLiveRequestsWithAnErrorAndRefusesNewOnes) {
  std::atomic<int> steps = 0;
  TestEngine test(small_options(), 2, [&](const StepBatch&) {
    if (++steps == 5) throw std::runtime_error("the device is gone");
  });
  test.engine.start();
  for (std::uint64_t id = 1; id <= 40; ++id) test.engine.submit(long_request(id));  // running and waiting
  test.collect_until_finished(40);
  for (const auto& [id, result] : test.results) {
    EXPECT_EQ(result.finish, FinishReason::error);
    EXPECT_EQ(result.last.error_code, ErrorCode::engine_failure);
    EXPECT_EQ(result.last.error, "the engine failed: the device is gone");
    EXPECT_LE(result.tokens.size(), 4u);
  }
  EXPECT_EQ(test.engine.failure(), "the device is gone");
  EXPECT_EQ(test.engine.stats().num_running, 0);
  EXPECT_EQ(test.run(long_request(99)).last.error_code, ErrorCode::engine_failure);
  test.engine.abort(1);
  test.engine.stop();
}

TEST(EngineFailure, WhateverIsThrown) {
  TestEngine test(small_options(), 2, [](const StepBatch&) { throw 7; });
  test.engine.start();
  EXPECT_EQ(test.run(long_request(1)).last.error, "the engine failed: an exception of an unknown type");
}

}  // namespace
}  // namespace minisgl::testing_support
