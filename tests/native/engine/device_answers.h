// A small model with real kernels behind an engine, and what it answers.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "models/memory_source.h"
#include "models/stepper.h"

namespace minisgl::testing_support {

// Two layers, wide enough for every kernel.
inline minisgl::testing::MemorySource small_qwen3(std::int64_t vocab_size = 320, std::int64_t head_dim = 16) {
  return minisgl::testing::random_model({{"model_type", "qwen3"},
                                         {"vocab_size", vocab_size},
                                         {"hidden_size", 64},
                                         {"intermediate_size", 160},
                                         {"num_hidden_layers", 2},
                                         {"num_attention_heads", 4},
                                         {"num_key_value_heads", 2},
                                         {"head_dim", head_dim},
                                         {"max_position_embeddings", 512},
                                         {"tie_word_embeddings", true}});
}

struct Answer {
  std::vector<TokenOutput> tokens;
};
using Answers = std::map<std::uint64_t, Answer>;  // by request

inline EngineConfig small_device_options(bool graphs = false) {
  EngineConfig options;
  options.num_pages = 96;  // too few for all at once: some are preempted
  options.page_size = 16;
  options.kv_dtype = DType::bf16;
  options.max_model_len = 512;
  options.max_running = 24;
  options.max_batch_tokens = 64;
  options.cuda_graphs = graphs;
  options.check_invariants = true;
  return options;
}

// Everything that an engine on `device` says. `followers`: the other ranks of the device's communicator.
inline Answers answers_of(std::unique_ptr<Device> device, const std::vector<Request>& requests,
                          const EngineConfig& options, PlanSenders followers = {}, EngineStats* stats = nullptr,
                          MakeLookahead make_lookahead = {}) {
  auto model = minisgl::testing::load(small_qwen3(), *device);
  Engine engine(std::move(model), std::move(device), options, std::move(followers), {}, std::move(make_lookahead));
  engine.start();
  for (const Request& request : requests) engine.submit(request);
  Answers answers;
  for (std::size_t finished = 0; finished < requests.size();) {
    pollfd event{.fd = engine.event_fd(), .events = POLLIN, .revents = 0};
    if (poll(&event, 1, 60000) != 1) {
      ADD_FAILURE() << "the engine says nothing";
      break;
    }
    for (RequestOutput& output : engine.take_outputs()) {
      EXPECT_NE(output.finish, FinishReason::error) << output.error;
      auto& tokens = answers[output.id].tokens;
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      finished += output.finish != FinishReason::none;
    }
  }
  if (stats == nullptr) {
    EXPECT_EQ(engine.stats().pages_free, engine.stats().pages_total);
  } else {
    *stats = engine.stats();  // copies may be under way
  }
  return answers;
}

inline std::vector<Request> many_requests() {
  std::mt19937 random(5);
  std::vector<Request> requests;
  for (std::uint64_t id = 0; id < 60; ++id) {
    Request request;
    request.id = id;
    const std::size_t length = 1 + random() % 150;
    for (std::size_t i = 0; i < length; ++i) request.prompt.push_back(static_cast<std::int32_t>(random() % 320));
    request.sampling.temperature = id % 3 == 0 ? 0.8f : 0.0f;
    request.sampling.seed = id;
    if (id % 6 == 0) request.sampling.top_k = 20;
    if (id % 5 == 0) request.sampling.repetition_penalty = 1.2f;
    request.max_tokens = 1 + static_cast<std::int64_t>(random() % 60);
    request.ignore_eos = true;
    request.logprobs = 2;
    requests.push_back(request);
  }
  return requests;
}

// Compares up to the first difference; that one must be a near-tie for greedy requests. Returns how many agreed whole.
inline int compare(const Answers& got, const Answers& expected, const std::vector<Request>& requests) {
  int whole = 0;
  for (const Request& request : requests) {
    const auto& a = got.at(request.id).tokens;
    const auto& b = expected.at(request.id).tokens;
    EXPECT_EQ(a.size(), b.size()) << "request " << request.id;
    std::size_t i = 0;
    while (i < a.size() && i < b.size() && a[i].token == b[i].token) {
      // As probabilities: what is unlikely differs more in its logarithm. A forced token has none.
      if (!std::isnan(b[i].logprob)) {
        EXPECT_NEAR(std::exp(a[i].logprob), std::exp(b[i].logprob), 0.1) << "request " << request.id << ", token " << i;
      }
      ++i;
    }
    whole += i == a.size();
    const bool plain = request.sampling.temperature == 0.0f && request.sampling.repetition_penalty == 1.0f;
    if (plain && i < a.size() && i < b.size() && b[i].top.size() == 2) {
      EXPECT_LT(b[i].top[0].logprob - b[i].top[1].logprob, 0.25) << "request " << request.id << ", token " << i;
    }
  }
  return whole;
}

}  // namespace minisgl::testing_support
