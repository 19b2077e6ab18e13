// Requests whose tokens are partly known before they are drawn get the same tokens, in fewer steps.
#include <cmath>

#include "engine/engine_fixture.h"
#include "engine/lookaheads.h"
#include "engine/plan_codec.h"

namespace minisgl::testing_support {
namespace {

using Pace = AsyncDevice::Pace;

struct Circumstances {
  const char* name;
  std::int64_t num_pages;
  int page_size;
  std::int64_t max_running, max_batch_tokens, max_drafts;
};

class EngineLookahead : public testing::TestWithParam<Circumstances> {
 protected:
  static EngineConfig options() {
    EngineConfig options = small_options();
    options.num_pages = GetParam().num_pages;
    options.page_size = GetParam().page_size;
    options.max_model_len = 100;
    options.max_running = GetParam().max_running;
    options.max_batch_tokens = GetParam().max_batch_tokens;
    options.max_drafts = GetParam().max_drafts;
    return options;
  }

  static void expect_all(TestEngine& test) {
    const std::vector<Request> requests = random_requests(120, 100, 31);
    for (const Request& request : requests) test.engine.submit(request);
    test.engine.start();
    test.collect_until_finished(requests.size());
    std::uint64_t num_tokens = 0;
    for (const Request& request : requests) {
      ASSERT_NO_FATAL_FAILURE(expect_reference(test.results[request.id], request, force_of(request)));
      num_tokens += test.results[request.id].tokens.size();
    }
    test.engine.stop();
    EXPECT_EQ(test.engine.stats().generated_tokens, num_tokens);
    test.expect_idle();
  }
};

TEST_P(EngineLookahead, DoesNotChangeTokens) {
  TestEngine test(options(), 2, {}, fake_spec(), {}, make_test_lookahead);
  expect_all(test);
}

TEST_P(EngineLookahead, DoesNotChangeTokensOnADeviceThatRunsAhead) {
  auto device = std::make_unique<AsyncDevice>(Pace::dawdling);
  const AsyncDevice& observed = *device;
  TestEngine test(std::move(device), options(), {}, {}, make_test_lookahead);
  expect_all(test);
  EXPECT_EQ(observed.most_in_flight(), 2);  // those without a lookahead still run ahead
}

INSTANTIATE_TEST_SUITE_P(Circumstances, EngineLookahead,
                         testing::Values(Circumstances{"with_strangers", 1000, 4, 16, 64, 24},
                                         Circumstances{"tiny_chunks", 1000, 4, 16, 16, 4},
                                         Circumstances{"short_of_pages", 34, 3, 16, 64, 32},
                                         Circumstances{"pages_of_one", 100, 1, 16, 33, 32},
                                         Circumstances{"no_room_for_drafts", 1000, 4, 16, 64, 0}),
                         [](const auto& info) { return std::string(info.param.name); });

class Perfect final : public Lookahead {
 public:
  explicit Perfect(std::vector<std::int32_t> tokens) : tokens_(std::move(tokens)) {}
  Ahead look(std::span<const std::int32_t> tokens) override {
    return {.forced = {}, .drafts = {tokens_.begin() + std::ssize(tokens), tokens_.end()}};
  }

 private:
  std::vector<std::int32_t> tokens_;
};

MakeLookahead perfect() {
  return [](const Request& request) {
    std::vector<std::int32_t> tokens = request.prompt;
    const auto generated = reference_generate(request, fake_spec()).tokens;
    tokens.insert(tokens.end(), generated.begin(), generated.end());
    return std::make_unique<Perfect>(tokens);
  };
}

TEST(EngineDrafts, ThatHoldSaveSteps) {
  EngineConfig options = small_options();
  options.max_drafts = 7;
  TestEngine test(options, 1, {}, fake_spec(), {}, perfect());
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 41);
  request.ignore_eos = true;
  request.logprobs = 0;
  const auto result = test.run(request);
  EXPECT_EQ(result.token_ids(), reference_generate(request, fake_spec()).tokens);
  EXPECT_EQ(test.engine.stats().num_steps, 1 + 5u);  // a token, then 8 at a time
  EXPECT_EQ(result.outputs.size(), 6u);
  for (const TokenOutput& token : result.tokens) EXPECT_LT(token.logprob, 0.0f);
}

TEST(EngineDrafts, NothingIsDeliveredBehindAStopToken) {
  EngineConfig options = small_options();
  options.max_drafts = 7;
  TestEngine test(options, 1, {}, fake_spec(), {}, [](const Request&) {
    return std::make_unique<Perfect>(std::vector<std::int32_t>{5, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3});
  });
  test.engine.start();
  Request request = make_request(1, {5}, 10);
  request.sampling.logit_bias = {{3, 100.0f}};  // the fake's end of sequence
  request.min_tokens = 0;
  request.ignore_eos = true;
  EXPECT_EQ(test.run(request).token_ids(), std::vector<std::int32_t>(10, 3));
  request.id = 2;
  request.ignore_eos = false;
  request.stop_token_ids = {};
  const auto result = test.run(request);
  EXPECT_EQ(result.token_ids(), (std::vector<std::int32_t>{3}));
  EXPECT_EQ(result.finish, FinishReason::stop);
  test.expect_idle();
}

// Counts of penalties know one draw per step, so drafts are dropped there.
TEST(EngineDrafts, AreDroppedWhereThereArePenalties) {
  EngineConfig options = small_options();
  options.max_drafts = 7;
  TestEngine test(options, 1, {}, fake_spec(), {}, perfect());
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 20);
  request.ignore_eos = true;
  request.sampling.presence_penalty = 1.0f;
  EXPECT_EQ(test.run(request).token_ids(), reference_generate(request, fake_spec()).tokens);
  EXPECT_EQ(test.engine.stats().num_steps, 20u);
}

TEST(EngineForcedTokens, ComeWithoutAStepOfTheirOwn) {
  class Twenty final : public Lookahead {
   public:
    Ahead look(std::span<const std::int32_t> tokens) override {
      if (tokens.size() == 4) return {.forced = std::vector<std::int32_t>(20, 9), .drafts = {}};
      return {};
    }
  };
  TestEngine test(small_options(), 1, {}, fake_spec(), {}, [](const Request&) { return std::make_unique<Twenty>(); });
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 22);
  request.ignore_eos = true;
  request.logprobs = 0;
  const auto result = test.run(request);
  ASSERT_EQ(result.tokens.size(), 22u);
  EXPECT_EQ(test.engine.stats().num_steps, 2u);
  for (std::size_t i = 1; i < 21; ++i) {
    EXPECT_EQ(result.tokens[i].token, 9);
    EXPECT_TRUE(std::isnan(result.tokens[i].logprob));
  }

  request.id = 2;
  request.max_tokens = 11;  // what goes beyond is dropped
  EXPECT_EQ(test.run(request).tokens.size(), 11u);
  EXPECT_EQ(test.results[2].finish, FinishReason::length);
  test.expect_idle();
}

// Other ranks hear of them before the step that computes them, for their penalties.
TEST(EngineForcedTokens, AreToldToEveryRank) {
  struct Recorder final : PlanSender, PlanHandler {
    using Told = std::vector<std::vector<std::int32_t>>;
    explicit Recorder(Told& told_) : told(told_) {}
    void send(std::span<const std::byte> frame) override { decoder.decode(frame, *this); }
    void add(SequenceId, SequenceSampling) override {}
    void remove(SequenceId) override {}
    void append(SequenceId, std::span<const std::int32_t> tokens) override {
      told.emplace_back(tokens.begin(), tokens.end());
    }
    void mask(SequenceId, std::span<const std::uint32_t>) override {}
    void pause(SequenceId, std::span<const std::int32_t>) override {}
    void step(const StepPlan& plan) override { told.push_back(plan.tokens); }
    void draw(std::span<const SequenceId>) override {}
    void copy(const TierCopies&, std::uint32_t) override {}
    void shut_down() override {}
    Told& told;
    PlanDecoder decoder{{.num_pages = 64,
                         .page_size = 4,
                         .max_model_len = 256,
                         .max_batch_tokens = 64,
                         .max_logits = 100,
                         .vocab_size = 50}};
  };
  class Once final : public Lookahead {
   public:
    Ahead look(std::span<const std::int32_t> tokens) override {
      if (tokens.size() == 4) return {.forced = {9, 8}, .drafts = {}};
      return {};
    }
  };
  Recorder::Told told;
  PlanSenders senders;
  senders.push_back(std::make_unique<Recorder>(told));
  TestEngine test(small_options(), 1, {}, fake_spec(), std::move(senders),
                  [](const Request&) { return std::make_unique<Once>(); });
  test.engine.start();
  Request request = make_request(1, {5, 6, 7}, 4);
  request.ignore_eos = true;
  const auto tokens = test.run(request).token_ids();
  ASSERT_EQ(tokens.size(), 4u);
  test.engine.stop();
  EXPECT_EQ(told, (Recorder::Told{{5, 6, 7}, {9, 8}, {tokens[0], 9, 8}}));
}

}  // namespace
}  // namespace minisgl::testing_support
