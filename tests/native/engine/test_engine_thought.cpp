// Thoughts with a budget are closed when it is used up, whatever happens around them, and by nobody else.
#include <algorithm>

#include "engine/engine_fixture.h"
#include "engine/letters.h"
#include "engine/thought.h"
#include "kernels/cpu/logprob.h"

namespace minisgl::testing_support {
namespace {

using Pace = AsyncDevice::Pace;

// A thought begins with 10, behind any number of 12, or with the answer; it ends with 11, 13.
constexpr std::int32_t kBegin = 10, kSpace = 12, kEnd = 11, kEnded = 13;
const std::vector<std::int32_t> kClosing = {20, kEnd, kEnded, 21};

ThoughtBudget budget(std::int64_t max_tokens, bool begins_inside) {
  if (begins_inside) {
    return {
        .max_tokens = max_tokens, .states = {0, 0}, .moves = {{0, kEnd, 1}, {1, kEnded, -1}}, .closings = {kClosing}};
  }
  return {.max_tokens = max_tokens,
          .states = {-1, 0, 0},
          .moves = {{0, kBegin, 1}, {0, kSpace, 0}, {1, kEnd, 2}, {2, kEnded, -1}},
          .closings = {kClosing}};
}

bool begins_inside(const Request& request) {
  return request.id % 2 == 0;
}

// What comes next without a draw, said by looking at the whole answer.
std::vector<std::int32_t> closing_after(const Request& request, std::span<const std::int32_t> answer) {
  if (request.thought.max_tokens < 0) return {};
  std::size_t begin = 0;
  if (!begins_inside(request)) {
    while (begin < answer.size() && answer[begin] == kSpace) ++begin;
    if (begin == answer.size() || answer[begin] != kBegin) return {};
    ++begin;
  }
  const std::span<const std::int32_t> thought = answer.subspan(begin);
  for (std::size_t i = 1; i < thought.size(); ++i) {
    if (thought[i - 1] == kEnd && thought[i] == kEnded) return {};
  }
  return std::ssize(thought) == request.thought.max_tokens ? kClosing : std::vector<std::int32_t>();
}

ReferenceOutput expected_of(const Request& request) {
  const auto force = [&](std::span<const std::int32_t> tokens) {
    return closing_after(request, tokens.subspan(request.prompt.size()));
  };
  return reference_generate(request, fake_spec(), force, closing_after(request, {}));
}

// Three of four have a budget, 0 to 6 tokens or many.
std::vector<Request> some_requests(std::uint64_t count) {
  std::vector<Request> requests = random_requests(count, 100, 23);
  for (Request& request : requests) {
    if (request.id % 4 == 3) continue;
    request.thought =
        budget(request.id % 5 == 0 ? 25 : static_cast<std::int64_t>(request.id % 7), begins_inside(request));
    request.sampling.logit_bias = {{kBegin, 2.0f}, {kSpace, 1.0f}, {kEnd, 1.0f}, {kEnded, 1.0f}};
  }
  return requests;
}

EngineConfig options(std::int64_t num_pages = 1000) {
  EngineConfig options = small_options();
  options.num_pages = num_pages;
  options.max_model_len = 100;
  options.max_running = 16;
  return options;
}

bool is_closed(std::span<const std::int32_t> tokens) {
  return std::search(tokens.begin(), tokens.end(), kClosing.begin(), kClosing.end()) != tokens.end();
}

void expect_all(TestEngine& test) {
  const std::vector<Request> requests = some_requests(120);
  for (const Request& request : requests) test.engine.submit(request);
  test.engine.start();
  test.collect_until_finished(requests.size());
  int num_closed = 0, num_left = 0;
  for (const Request& request : requests) {
    const TestEngine::Result& result = test.results[request.id];
    const ReferenceOutput expected = expected_of(request);
    ASSERT_EQ(result.token_ids(), expected.tokens) << "request " << request.id;
    ASSERT_EQ(result.finish, expected.finish) << "request " << request.id;
    const bool closed = is_closed(expected.tokens);
    num_closed += static_cast<int>(closed);
    num_left += static_cast<int>(!closed && request.thought.max_tokens >= 0 && expected.tokens.size() > 10);
    if (request.logprobs < 0) continue;
    std::vector<std::int32_t> tokens = request.prompt;
    for (const TokenOutput& token : result.tokens) {  // of those that close a thought, too
      std::vector<TokenLogprob> top;
      ASSERT_EQ(token.logprob, token_logprob(reference_logits(tokens, 50), token.token, 0, top));
      tokens.push_back(token.token);
    }
  }
  EXPECT_GT(num_closed, 25);
  EXPECT_GT(num_left, 5);
  test.engine.stop();
  test.expect_idle();
}

TEST(EngineThought, IsClosedWhenItsBudgetIsUsedUp) {
  TestEngine test(options());
  expect_all(test);
}

TEST(EngineThought, IsClosedOnADeviceThatRunsAhead) {
  TestEngine test(std::make_unique<AsyncDevice>(Pace::dawdling), options());
  expect_all(test);
}

TEST(EngineThought, IsClosedWhenPreempted) {
  TestEngine test(options(27));
  expect_all(test);
  EXPECT_GT(test.engine.stats().num_preemptions, 0u);
}

// A sequence that needs its token is in every second step, and alone then.
TEST(EngineThought, RunsAheadButForItsEnd) {
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  const AsyncDevice& observed = *device;
  TestEngine test(std::move(device), options());
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 40);
  request.ignore_eos = true;
  request.thought = budget(2, true);
  test.run(request);
  EXPECT_EQ(observed.most_in_flight(), 2);
  EXPECT_TRUE(is_closed(test.results[1].token_ids()));
}

// Whatever part of its answer a request has already, it gets the rest.
void expect_resumable(TestEngine& test, Request request, const std::vector<std::int32_t>& answer) {
  const std::vector<std::int32_t> prompt = request.prompt;
  for (std::ptrdiff_t done = 1; done < std::ssize(answer); ++done) {
    request.id += 2;
    request.prompt = prompt;
    request.prompt.insert(request.prompt.end(), answer.begin(), answer.begin() + done);
    request.num_resumed = done;
    EXPECT_EQ(test.run(request).token_ids(), std::vector(answer.begin() + done, answer.end())) << done;
  }
}

TEST(EngineThought, GoesOnBehindWhatAnotherEngineWrote) {
  TestEngine test(options());
  test.engine.start();
  for (const bool inside : {true, false}) {
    Request request = make_request(100, {5, 6, 7}, 30);
    request.ignore_eos = true;
    request.id += static_cast<std::uint64_t>(inside) * 1000;
    request.thought = budget(4, inside);
    if (!inside) request.sampling.logit_bias = {{kBegin, 50.0f}};
    const std::vector<std::int32_t> whole = test.run(request).token_ids();
    ASSERT_TRUE(is_closed(whole));
    expect_resumable(test, request, whole);
  }
}

// On the CPU, or on a device that runs ahead.
class EngineThoughtInAGrammar : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { MINISGL_NEEDS_LLGUIDANCE(); }
  static std::unique_ptr<TestEngine> make_engine() {
    return GetParam() ? std::make_unique<TestEngine>(std::make_unique<AsyncDevice>(Pace::dawdling), options())
                      : std::make_unique<TestEngine>(options());
  }
};

INSTANTIATE_TEST_SUITE_P(All, EngineThoughtInAGrammar, testing::Bool(),
                         [](const auto& info) { return info.param ? "ahead" : "in_step"; });

// What the grammar doesn't allow of a closing is passed over.
TEST_P(EngineThoughtInAGrammar, KeepsToIt) {
  const auto owner = make_engine();
  TestEngine& test = *owner;
  test.engine.start();
  test.engine.open_grammars(library_path(), letters());
  Request request = make_request(2, {5, 6, 7}, 40);
  request.grammar = "start: /[a-z]{30}/";
  request.thought = budget(4, true);
  request.thought.closings = {{26, kEnd, kEnded, 27}};  // 0ln1
  const std::vector<std::int32_t> tokens = test.run(request).token_ids();
  EXPECT_EQ(test.results[2].finish, FinishReason::stop);
  EXPECT_THAT(std::vector(tokens.begin() + 4, tokens.begin() + 6), testing::ElementsAre(kEnd, kEnded));
  EXPECT_EQ(text_of(tokens).size(), 30u);
  expect_resumable(test, request, tokens);
}

// Where it allows nothing of a closing, that waits.
TEST_P(EngineThoughtInAGrammar, IsClosedWhereThatAllowsIt) {
  const auto owner = make_engine();
  TestEngine& test = *owner;
  test.engine.start();
  test.engine.open_grammars(library_path(), letters());
  Request request = make_request(2, {5, 6, 7}, 40);
  request.grammar = "start: /[0-9]{6}[a-z]{24}/";
  request.thought = budget(4, true);
  request.thought.closings = {{kEnd, kEnded}};
  const std::vector<std::int32_t> tokens = test.run(request).token_ids();
  EXPECT_EQ(test.results[2].finish, FinishReason::stop);
  EXPECT_THAT(std::vector(tokens.begin() + 6, tokens.begin() + 8), testing::ElementsAre(kEnd, kEnded));
  expect_resumable(test, request, tokens);
}

TEST(Thought, OneThatTheModelEndsIsOver) {
  Thought thought(budget(3, false));
  EXPECT_FALSE(thought.is_near_end());
  thought.note(std::vector<std::int32_t>{kSpace, kBegin, 1});
  EXPECT_TRUE(thought.closing().empty());
  thought.note(std::vector<std::int32_t>{kEnd});
  EXPECT_TRUE(thought.is_near_end());
  thought.note(std::vector<std::int32_t>{kEnded});  // the last that it may have
  EXPECT_TRUE(thought.is_over());
  EXPECT_FALSE(thought.is_near_end());
  EXPECT_TRUE(thought.closing().empty());
}

TEST(Thought, AnAnswerThatBeginsOtherwiseHasNone) {
  Thought thought(budget(0, false));
  EXPECT_TRUE(thought.is_near_end());
  thought.note(std::vector<std::int32_t>{kSpace, 1});
  EXPECT_TRUE(thought.is_over());
}

}  // namespace
}  // namespace minisgl::testing_support
