// An engine around the fake model, and everything that it said, by request.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "engine/async_device.h"
#include "engine/fake_model.h"
#include "kernels/cpu/backend.h"

namespace minisgl::testing_support {

// Small pages and a verified scheduler.
inline EngineConfig small_options() {
  EngineConfig options;
  options.num_pages = 64;
  options.page_size = 4;
  options.kv_dtype = DType::f32;
  options.max_model_len = 256;
  options.max_running = 32;
  options.max_batch_tokens = 64;
  options.max_waiting = 1000;
  options.check_invariants = true;
  return options;
}

inline std::unique_ptr<Model> make_model_on(AsyncDevice& device, std::function<void(const StepBatch&)> on_forward) {
  return std::make_unique<FakeModel>(
      fake_spec(), std::move(on_forward), [&device](FakeModel::Compute compute) { device.enqueue(std::move(compute)); },
      &device);
}

// Whether the condition comes to hold; a minute is more than any machine needs.
template <typename Condition>
bool eventually(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

class TestEngine {
 public:
  explicit TestEngine(const EngineConfig& options = small_options(), int num_threads = 2,
                      std::function<void(const StepBatch&)> on_forward = {}, const ModelSpec& spec = fake_spec(),
                      PlanSenders followers = {}, MakeLookahead make_lookahead = {})
      : TestEngine(make_cpu_device(num_threads).release(), options, std::move(on_forward), spec, std::move(followers),
                   std::move(make_lookahead)) {}

  // On a device that runs ahead.
  explicit TestEngine(std::unique_ptr<AsyncDevice> device, const EngineConfig& options = small_options(),
                      std::function<void(const StepBatch&)> on_forward = {}, PlanSenders followers = {},
                      MakeLookahead make_lookahead = {})
      : TestEngine(device.release(), options, std::move(on_forward), std::move(followers), std::move(make_lookahead)) {}

  // Of any model and device.
  TestEngine(std::unique_ptr<Model> model, std::unique_ptr<Device> device, const EngineConfig& options,
             PlanSenders followers)
      : engine(std::move(model), std::move(device), options, std::move(followers)) {}

  struct Result {
    std::vector<TokenOutput> tokens;
    std::vector<TokenOutput> prompt_logprobs;
    std::vector<RequestOutput> outputs;
    FinishReason finish = FinishReason::none;
    RequestOutput last = {};

    std::vector<std::int32_t> token_ids() const {
      std::vector<std::int32_t> ids;
      for (const TokenOutput& token : tokens) ids.push_back(token.token);
      return ids;
    }
  };

  // Waits for the event, takes what is there, and verifies that nothing follows a last output.
  void collect() {
    pollfd event{.fd = engine.event_fd(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&event, 1, 60000), 1) << "the engine says nothing";
    const std::vector<RequestOutput> outputs = engine.take_outputs();
    ASSERT_FALSE(outputs.empty());
    for (const RequestOutput& output : outputs) {
      Result& result = results[output.id];
      ASSERT_EQ(result.finish, FinishReason::none) << "request " << output.id << " ended twice";
      result.tokens.insert(result.tokens.end(), output.tokens.begin(), output.tokens.end());
      if (!output.prompt_logprobs.empty()) {
        ASSERT_TRUE(result.prompt_logprobs.empty());
        result.prompt_logprobs = output.prompt_logprobs;
      }
      result.outputs.push_back(output);
      result.finish = output.finish;
      if (output.finish != FinishReason::none) result.last = output, ++num_finished;
    }
  }
  void collect_until_finished(std::size_t count) {
    while (num_finished < count) ASSERT_NO_FATAL_FAILURE(collect());
  }

  // Nothing is live and every page is free; on a device that runs ahead once the steps in flight are done, too.
  void expect_idle() const {
    EngineStats stats;
    EXPECT_TRUE(eventually([&] { return stats = engine.stats(), stats.pages_free == stats.pages_total; }))
        << stats.pages_free << " of " << stats.pages_total << " pages are free";
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
  }

  // The request alone from start to end.
  Result run(const Request& request) {
    engine.submit(request);
    while (results[request.id].finish == FinishReason::none && !testing::Test::HasFatalFailure()) collect();
    return results[request.id];
  }

  std::map<std::uint64_t, Result> results;
  std::size_t num_finished = 0;
  Engine engine;

 private:
  TestEngine(AsyncDevice* device, const EngineConfig& options, std::function<void(const StepBatch&)> on_forward,
             PlanSenders followers, MakeLookahead make_lookahead)
      : engine(make_model_on(*device, std::move(on_forward)), std::unique_ptr<Device>(device), options,
               std::move(followers), {}, std::move(make_lookahead)) {}
  TestEngine(Device* device, const EngineConfig& options, std::function<void(const StepBatch&)> on_forward,
             const ModelSpec& spec, PlanSenders followers, MakeLookahead make_lookahead)
      : engine(
            std::make_unique<FakeModel>(spec, std::move(on_forward), std::function<void(FakeModel::Compute)>(), device),
            std::unique_ptr<Device>(device), options, std::move(followers), {}, std::move(make_lookahead)) {}
};

// The request got what it must, whatever happened around it.
inline void expect_reference(const TestEngine::Result& result, const Request& request, const Force& force = {}) {
  const ReferenceOutput expected = reference_generate(request, fake_spec(), force);
  ASSERT_EQ(result.token_ids(), expected.tokens) << "request " << request.id;
  ASSERT_EQ(result.finish, expected.finish) << "request " << request.id;
  ASSERT_EQ(result.last.embedding, expected.embedding) << "request " << request.id;
  ASSERT_EQ(result.prompt_logprobs.size(), request.prompt_logprobs >= 0 ? request.prompt.size() : 0);
  for (std::size_t p = 1; p < result.prompt_logprobs.size(); ++p) {
    std::vector<TokenLogprob> top;
    const std::vector<float> logits = reference_logits(std::span(request.prompt).first(p), fake_spec().vocab_size);
    ASSERT_EQ(result.prompt_logprobs[p].logprob, token_logprob(logits, request.prompt[p], 0, top));
  }
}

inline Request make_request(std::uint64_t id, std::vector<std::int32_t> prompt, std::int64_t max_tokens) {
  Request request;
  request.id = id;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.seed = 1000 + id;
  return request;
}

// Any mix of what a request may ask for, such that it fits `max_model_len`.
inline Request random_request(std::uint64_t id, std::int64_t max_model_len, std::mt19937& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % n); };
  const std::int64_t vocab_size = fake_spec().vocab_size;
  std::vector<std::int32_t> prompt(1 + below(max_model_len / 2));
  for (std::int32_t& token : prompt) token = static_cast<std::int32_t>(below(vocab_size));
  const std::int64_t room = max_model_len - static_cast<std::int64_t>(prompt.size());
  Request request = make_request(id, std::move(prompt), below(std::min<std::int64_t>(room + 1, 60)));
  request.min_tokens = request.max_tokens > 0 ? below(std::min<std::int64_t>(request.max_tokens, 8)) : 0;
  request.ignore_eos = below(2) == 0;
  if (below(3) == 0) request.stop_token_ids = {static_cast<std::int32_t>(below(vocab_size))};
  if (below(4) == 0) request.logprobs = static_cast<std::int32_t>(below(4));
  if (below(4) == 0) request.prompt_logprobs = static_cast<std::int32_t>(below(4));
  SamplingParams& sampling = request.sampling;
  sampling.temperature = below(3) == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(below(10));
  if (below(3) == 0) sampling.top_k = static_cast<std::int32_t>(1 + below(20));
  if (below(3) == 0) sampling.top_p = 0.9f;
  if (below(4) == 0) sampling.repetition_penalty = 1.3f;
  if (below(4) == 0) sampling.presence_penalty = 0.5f;
  if (below(4) == 0) sampling.frequency_penalty = 0.25f;
  if (below(4) == 0) sampling.logit_bias = {{static_cast<std::int32_t>(below(vocab_size)), 2.0f}};
  if (below(4) == 0) {
    for (int i = 0; i < 100; ++i) {
      sampling.bad_words.emplace_back(1 + (i % 20 == 0 ? 0 : below(2)));
      for (std::int32_t& token : sampling.bad_words.back()) token = static_cast<std::int32_t>(below(vocab_size));
    }
  }
  if (below(4) == 0) {
    for (int i = 0; i < 8; ++i) {
      sampling.allowed_token_ids.push_back(static_cast<std::int32_t>(below(vocab_size)));
    }
  }
  request.standing = {.priority = static_cast<std::int32_t>(id * 7 % 5) - 2,
                      .share = static_cast<std::int64_t>(id % 3),
                      .user = id / 3 % 2};
  return request;
}

inline std::vector<Request> random_requests(std::uint64_t count, std::int64_t max_model_len, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Request> requests;
  for (std::uint64_t id = 1; id <= count; ++id) {
    Request request = random_request(id, max_model_len, random);
    if (!requests.empty() && random() % 2 == 0) {
      // It begins like one before it, or goes on behind its answer.
      const Request& other = requests[random() % requests.size()];
      std::vector<std::int32_t> tokens = other.prompt;
      if (random() % 2 == 0) {
        const std::vector<std::int32_t> answer = reference_generate(other, fake_spec()).tokens;
        tokens.insert(tokens.end(), answer.begin(), answer.end());
      }
      tokens.resize(std::min(tokens.size(), request.prompt.size()));
      std::ranges::copy(tokens, request.prompt.begin());
    }
    if (id % 7 == 5) {  // an embedding instead of an answer
      request.max_tokens = request.min_tokens = 0;
      request.prompt_logprobs = -1;
      request.pooling = {.kind = id % 2 == 0 ? Pooling::Kind::last : Pooling::Kind::mean,
                         .normalize = id % 3 != 0,
                         .dimensions = static_cast<std::int64_t>(id % 5 == 0)};
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace minisgl::testing_support
