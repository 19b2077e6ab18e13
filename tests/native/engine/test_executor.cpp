// The executor under plans made by hand: what it makes of fields that ordinary steps don't use.
#include <gtest/gtest.h>

#include <vector>

#include "engine/engine_fixture.h"
#include "engine/executor.h"

namespace minisgl::testing_support {
namespace {

// A rank with a fake model and pages of 4.
struct FakeRank {
  FakeModel model;
  std::unique_ptr<Device> device = make_cpu_device(1);
  Executor executor{model, *device, KvCache(*device, fake_spec(), DType::f32, 8, 4)};

  std::vector<TokenOutput> run(const StepPlan& plan) {
    executor.launch(plan);
    return executor.take();
  }
};

StepPlan plan_of(SequenceId id, std::vector<std::int32_t> tokens, std::int32_t start, std::vector<PageId> pages) {
  StepPlan plan;
  const auto num_rows = static_cast<std::int32_t>(tokens.size());
  plan.tokens = std::move(tokens);
  plan.sequences = {{.id = id,
                     .first_row = 0,
                     .num_rows = num_rows,
                     .start_position = start,
                     .num_kept_pages = 0,
                     .first_new_page = 0,
                     .num_new_pages = static_cast<std::int32_t>(pages.size()),
                     .num_draws = 1}};
  plan.new_pages = std::move(pages);
  plan.logit_rows = {num_rows - 1};
  plan.targets = {{0, LogitTarget::kSample}};
  return plan;
}

// The prompt's beginning lies in another sequence's page, so no step computes it here; the penalty counts it all the
// same.
TEST(Executor, PenaltiesKnowAPromptWhoseRowsWereNotComputed) {
  const std::vector<std::int32_t> prompt{11, 12, 13, 14, 15};
  SequenceSampling sampling;
  sampling.prompt_len = 5;
  FakeRank rank;
  rank.executor.add(1, sampling);
  rank.run(plan_of(1, prompt, 0, {0, 1}));

  sampling.params.temperature = 0.0f;
  sampling.params.repetition_penalty = 100.0f;
  sampling.params.logit_bias = {{12, 100.0f}, {15, 99.0f}, {20, 50.0f}};
  sampling.prompt = prompt;
  rank.executor.add(2, sampling);
  EXPECT_EQ(rank.run(plan_of(2, {15}, 4, {0, 2})).front().token, 20);
}

}  // namespace
}  // namespace minisgl::testing_support
