// Embeddings: what rows come to, and that an engine makes them of every prompt however its steps cut it.
#include <cmath>

#include "engine/engine_fixture.h"
#include "engine/validation.h"

namespace minisgl::testing_support {
namespace {

using Kind = Pooling::Kind;

std::vector<float> pooled(const Pooling& pooling, std::vector<float> rows, std::size_t width) {
  Pooler pooler(pooling);
  pooler.add(rows, width);
  return pooler.embedding();
}

TEST(Pooling, LastAndMean) {
  const std::vector<float> rows{1, 2, 3, 5, 6, 9};
  EXPECT_EQ(pooled({.kind = Kind::last, .normalize = false}, rows, 3), (std::vector<float>{5, 6, 9}));
  EXPECT_EQ(pooled({.kind = Kind::mean, .normalize = false}, rows, 3), (std::vector<float>{3, 4, 6}));
  EXPECT_EQ(pooled({.kind = Kind::mean, .normalize = false, .dimensions = 2}, rows, 3), (std::vector<float>{3, 4}));
  EXPECT_EQ(pooled({.kind = Kind::mean, .dimensions = 2}, rows, 3), (std::vector<float>{0.6f, 0.8f}));
  EXPECT_EQ(pooled({.kind = Kind::last}, {0, 0}, 2), (std::vector<float>{0, 0}));
}

TEST(Pooling, WhereStepsCutThePromptChangesNoBit) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(-3, 3);
  std::vector<float> rows(1000 * 7);
  for (float& x : rows) x = value(random);
  for (const Kind kind : {Kind::last, Kind::mean}) {
    const std::vector<float> whole = pooled({.kind = kind}, rows, 7);
    Pooler pooler({.kind = kind});
    for (std::span<const float> rest(rows); !rest.empty();) {
      const std::size_t size = std::min(rest.size(), 7 * (random() % 20));
      pooler.add(rest.first(size), 7);
      rest = rest.subspan(size);
    }
    EXPECT_EQ(pooler.embedding(), whole);
  }
}

Request embedding_of(std::uint64_t id, std::int64_t prompt_len, Pooling pooling) {
  std::vector<std::int32_t> prompt;
  for (std::int64_t i = 0; i < prompt_len; ++i) prompt.push_back(static_cast<std::int32_t>((i * i + 7) % 50));
  Request request = make_request(id, std::move(prompt), 0);
  request.pooling = pooling;
  return request;
}

// As long as the model's context, in steps of 64 rows; the second time the last row's prefix is cached.
TEST(EngineEmbedding, OfTheLongestPrompt) {
  TestEngine test;
  test.engine.start();
  std::uint64_t id = 0;
  for (const Kind kind : {Kind::mean, Kind::last, Kind::last, Kind::mean}) {
    const Request request = embedding_of(++id, 256, {.kind = kind});
    const auto result = test.run(request);
    expect_reference(result, request);
    EXPECT_EQ(result.outputs.size(), 1u);
    EXPECT_EQ(result.last.num_cached, kind == Kind::last ? 252 : 0);
  }
  EXPECT_EQ(test.engine.stats().prompt_tokens, 4u * 256);
  EXPECT_EQ(test.engine.stats().generated_tokens, 0u);
  test.expect_idle();
}

TEST(EngineEmbedding, AbortedBetweenItsSteps) {
  std::unique_ptr<TestEngine> test;
  int steps = 0;
  test = std::make_unique<TestEngine>(small_options(), 2, [&](const StepBatch&) {
    if (++steps == 2) test->engine.abort(1);
  });
  test->engine.submit(embedding_of(1, 256, {.kind = Kind::mean}));
  const Request other = embedding_of(2, 30, {.kind = Kind::mean});
  test->engine.submit(other);
  test->engine.start();
  test->collect_until_finished(2);
  EXPECT_EQ(test->results[1].finish, FinishReason::abort);
  EXPECT_TRUE(test->results[1].last.embedding.empty());
  expect_reference(test->results[2], other);
  test->expect_idle();
}

TEST(EngineEmbedding, NamesTheFieldAndTheValue) {
  const auto fault_after = [](const auto& change) {
    Request request = embedding_of(1, 3, {.kind = Kind::last});
    change(request);
    const auto fault = find_fault(request, fake_spec(), small_options());
    return fault ? fault->message : "";
  };
  EXPECT_EQ(fault_after([](Request&) {}), "");
  EXPECT_EQ(fault_after([](Request& r) { r.pooling.dimensions = 2; }), "");
  EXPECT_EQ(fault_after([](Request& r) { r.pooling.dimensions = 3; }),
            "dimensions must be between 1 and 2, or 0 for all, got 3");
  EXPECT_EQ(fault_after([](Request& r) { r.max_tokens = 1; }), "max_tokens must be 0 with pooling, got 1");
  EXPECT_EQ(fault_after([](Request& r) { r.prompt_logprobs = 0; }), "prompt_logprobs must be -1 with pooling, got 0");
}

}  // namespace
}  // namespace minisgl::testing_support
