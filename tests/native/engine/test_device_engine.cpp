// A small model through the engine on the GPU: recorded decode steps, chunked prefill and company against the same
// model on the CPU. Tokens must agree up to the first near-tie of the CPU's own distribution.
#include <gtest/gtest.h>
#include <poll.h>

#include <map>
#include <memory>
#include <random>

#include "engine/engine.h"
#include "engine/small_qwen3.h"
#include "kernels/devices.h"

namespace minisgl::testing_support {
namespace {

struct Answer {
  std::vector<TokenOutput> tokens;
};

std::map<std::uint64_t, Answer> answers_of(std::unique_ptr<Ops> device, const std::vector<Request>& requests,
                                           bool graphs) {
  EngineOptions options = short_of_pages();
  options.cuda_graphs = graphs;
  const std::unique_ptr<Engine> running = small_engine(std::move(device), 320, options);
  Engine& engine = *running;
  engine.start();
  for (const Request& request : requests) engine.submit(request);
  std::map<std::uint64_t, Answer> answers;
  for (std::size_t finished = 0; finished < requests.size();) {
    pollfd event{.fd = engine.event_fd(), .events = POLLIN, .revents = 0};
    if (poll(&event, 1, 60000) != 1) {
      ADD_FAILURE() << "the engine says nothing";
      break;
    }
    for (RequestOutput& output : engine.drain()) {
      EXPECT_NE(output.finish, FinishReason::error) << output.error;
      auto& tokens = answers[output.id].tokens;
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      finished += output.finish != FinishReason::none;
    }
  }
  engine.stop();
  EXPECT_EQ(engine.stats().pages_free, engine.stats().pages_total);
  return answers;
}

std::vector<Request> many_requests() {
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
int compare(const std::map<std::uint64_t, Answer>& got, const std::map<std::uint64_t, Answer>& expected,
            const std::vector<Request>& requests) {
  int whole = 0;
  for (const Request& request : requests) {
    const auto& a = got.at(request.id).tokens;
    const auto& b = expected.at(request.id).tokens;
    EXPECT_EQ(a.size(), b.size()) << "request " << request.id;
    std::size_t i = 0;
    while (i < a.size() && i < b.size() && a[i].token == b[i].token) {
      EXPECT_NEAR(a[i].logprob, b[i].logprob, 0.25) << "request " << request.id << ", token " << i;
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

TEST(DeviceEngine, TheGpuSaysWhatTheCpuSays) {
  MINISGL_SKIP_WITHOUT(DeviceKind::cuda);
  const auto requests = many_requests();
  const auto expected = answers_of(make_cpu_ops(2), requests, false);
  const auto eager = answers_of(make_cuda_ops(0, 2), requests, false);
  const auto replayed = answers_of(make_cuda_ops(0, 2), requests, true);
  const int eager_whole = compare(eager, expected, requests), replayed_whole = compare(replayed, expected, requests);
  std::printf("of %zu answers equal to the CPU's: %d without graphs, %d with\n", requests.size(), eager_whole,
              replayed_whole);
  EXPECT_GE(eager_whole, 20);
  EXPECT_GE(replayed_whole, 20);
}

}  // namespace
}  // namespace minisgl::testing_support
