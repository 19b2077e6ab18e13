// The executor under plans made by hand and by a scheduler: what it makes of fields that ordinary steps don't use.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "engine/async_device.h"
#include "engine/engine_fixture.h"
#include "engine/executor.h"
#include "engine/plan_codec.h"
#include "sched/scheduler.h"

namespace minisgl::testing_support {
namespace {

// A rank with a fake model and pages of 4.
struct FakeRank {
  std::unique_ptr<Device> device = make_cpu_device(1);
  FakeModel model{fake_spec(), {}, {}, device.get()};
  const FakeAdapters adapters;
  Executor executor{model, *device, KvCache(*device, fake_spec(), DType::f32, 64, 4), adapters};

  StepOutputs run(const StepPlan& plan) {
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

// A device that is asked for all it needs before the first request.
struct RecordingDevice : AsyncDevice {
  bool records_steps() const override { return true; }
};

struct RehearsedModel : FakeModel {
  using FakeModel::FakeModel;
  void rehearse(const StepBatch& batch, KvCache&) override {
    num_rows.push_back(std::ssize(batch.tokens));
    most_position = std::max(most_position, *std::ranges::max_element(batch.positions));
  }
  std::vector<std::int64_t> num_rows;
  std::int32_t most_position = 0;
};

TEST(Executor, RehearsesPromptsOfAllLengthsThatADeviceChoosesFor) {
  RecordingDevice device;
  RehearsedModel model(fake_spec(), {}, {}, &device);
  const FakeAdapters adapters;
  Executor executor(model, device, KvCache(device, fake_spec(), DType::f32, 64, 4), adapters);
  executor.prepare({.rows = 700, .positions = 100}, false);
  EXPECT_EQ(model.num_rows, (std::vector<std::int64_t>{16, 32, 48, 64, 128, 256, 512, 700}));
  EXPECT_EQ(model.most_position, 99);  // more rows than a sequence has are several sequences
}

// Another process on the device ends while this one starts.
TEST(Executor, ReportsNoLessThanNothingWhereOthersGiveMemoryBack) {
  struct SharedDevice : RecordingDevice {
    std::int64_t available_memory() const override { return available += 1000; }
    mutable std::int64_t available = 1000;
  };
  SharedDevice device;
  FakeModel model(fake_spec(), {}, {}, &device);
  const FakeAdapters adapters;
  Executor executor(model, device, KvCache(device, fake_spec(), DType::f32, 64, 4), adapters);
  const Executor::Prepared prepared = executor.prepare({.rows = 32, .positions = 100}, false);
  EXPECT_EQ(prepared.workspace_bytes, 0);
  EXPECT_EQ(prepared.graph_bytes, 0);
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
  EXPECT_EQ(rank.run(plan_of(2, {15}, 4, {0, 2})).tokens.front().token, 20);
}

// Two ranks, the second told by frames, on devices that run ahead or not: sequences of every kind that the scheduler
// plans, shared prefixes with copied pages, adapters and hidden states among them, get what they get alone.
class AnyPlan : public testing::TestWithParam<unsigned> {
 protected:
  struct Live {
    std::vector<std::int32_t> prompt, tokens;
    std::int64_t max_tokens, num_hidden;
    std::int32_t adapter;
    std::vector<float> hidden = {};
  };
  struct AheadRank {
    AsyncDevice* device = new AsyncDevice(AsyncDevice::Pace::dawdling);
    std::unique_ptr<Device> owner{device};
    FakeModel model{
        fake_spec(), {}, [this](FakeModel::Compute compute) { device->enqueue(std::move(compute)); }, device};
    const FakeAdapters adapters;
    Executor executor{model, *device, KvCache(*device, fake_spec(), DType::f32, 64, 4), adapters};
  };
  struct Forward final : PlanHandler {
    explicit Forward(Executor& to_) : to(to_) {}
    void add(SequenceId id, SequenceSampling sampling) override { to.add(id, std::move(sampling)); }
    void remove(SequenceId id) override { to.remove(id); }
    void append(SequenceId id, std::span<const std::int32_t> tokens) override { to.append(id, tokens); }
    void mask(SequenceId id, std::span<const std::uint32_t> words) override { to.mask(id, words); }
    void pause(SequenceId id, std::span<const std::int32_t> output) override { to.pause(id, output); }
    void step(const StepPlan& plan) override { to.launch(plan); }
    void draw(std::span<const SequenceId> withdrawn) override { to.draw(withdrawn); }
    void copy(const TierCopies& copies, std::uint32_t) override { to.copy(copies); }
    void shut_down() override {}
    Executor& to;
  };

  void submit(SequenceId id) {
    Live live{.prompt = {}, .tokens = {}, .max_tokens = below(12), .num_hidden = 0, .adapter = 0};
    const auto length = static_cast<std::size_t>(1 + below(40));
    NewSequence sequence;
    sequence.id = id;
    if (!live_.empty() && below(2) == 0) {
      auto other = live_.begin();
      std::advance(other, below(std::ssize(live_)));
      live.prompt = other->second.prompt;
      live.prompt.resize(std::min(live.prompt.size(), length));
      live.adapter = other->second.adapter;
    } else {
      live.adapter = static_cast<std::int32_t>(below(3));
    }
    while (live.prompt.size() < length) live.prompt.push_back(static_cast<std::int32_t>(below(50)));
    if (live.max_tokens == 0) live.num_hidden = 1 + below(std::ssize(live.prompt));
    sequence.prompt = live.prompt;
    sequence.max_tokens = live.max_tokens;
    sequence.num_hidden = live.num_hidden;
    sequence.space.adapter = live.adapter;
    SequenceSampling sampling;
    sampling.params.seed = id;
    sampling.prompt_len = std::ssize(live.prompt);
    encoder_.add(id, sampling);
    first_.executor.add(id, sampling);
    scheduler_.add(std::move(sequence));
    live_.emplace(id, std::move(live));
  }

  void launch() {
    const StepPlan& plan = scheduler_.plan();
    if (plan.empty()) return;
    num_copies_ += std::ssize(plan.copies);
    encoder_.step(plan);
    first_.executor.launch(plan);
    Forward forward(second_.executor);
    decoder_.decode(encoder_.frame(), forward);
    encoder_.clear();
  }

  void finish() {
    const StepPlan& plan = scheduler_.oldest();
    const StepOutputs outputs = first_.executor.take(), others = second_.executor.take();
    EXPECT_EQ(others.hidden, outputs.hidden);
    std::vector<std::int32_t> drawn;
    for (std::size_t i = 0; i < outputs.tokens.size(); ++i) {
      EXPECT_EQ(others.tokens[i].token, outputs.tokens[i].token);
      drawn.push_back(outputs.tokens[i].token);
    }
    StepTokens tokens;
    accept_drafts(plan, drawn, tokens);
    scheduler_.complete(tokens);
    scheduler_.check();
    auto hidden = outputs.hidden.begin();
    for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
      const SequenceStep& part = plan.sequences[i];
      Live& live = live_.at(part.id);
      live.tokens.insert(live.tokens.end(), tokens.of(i).begin(), tokens.of(i).end());
      live.hidden.insert(live.hidden.end(), hidden, hidden + 2 * part.num_hidden);
      hidden += 2 * part.num_hidden;
      const bool computed = part.start_position + part.num_rows >= std::ssize(live.prompt);
      if (computed && std::ssize(live.tokens) == live.max_tokens) {
        expect_right(part.id, live);
        scheduler_.remove(part.id);
        encoder_.remove(part.id);
        first_.executor.remove(part.id);
        live_.erase(part.id);
      }
    }
  }

  static void expect_right(SequenceId id, const Live& live) {
    SamplingParams params;
    params.seed = id;
    SampleScratch scratch;
    std::vector<std::int32_t> all = live.prompt;
    for (std::size_t i = 0; i < live.tokens.size(); ++i) {
      std::vector<float> logits = reference_logits(all, 50, live.adapter);
      ASSERT_EQ(live.tokens[i], sample(logits, params, {}, i, scratch)) << "sequence " << id;
      all.push_back(live.tokens[i]);
    }
    std::vector<float> expected;
    for (std::int64_t i = std::ssize(live.prompt) - live.num_hidden; i < std::ssize(live.prompt); ++i) {
      const auto hidden =
          reference_logits(std::span(live.prompt).first(static_cast<std::size_t>(i) + 1), 2, live.adapter);
      expected.insert(expected.end(), hidden.begin(), hidden.end());
    }
    ASSERT_EQ(live.hidden, live.num_hidden > 0 ? expected : std::vector<float>()) << "sequence " << id;
  }

  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n)); }

  std::mt19937 random_{GetParam()};
  Scheduler scheduler_{{.num_pages = 64, .page_size = 4, .max_running = 8, .max_batch_tokens = 48}};
  AheadRank first_, second_;
  PlanEncoder encoder_;
  PlanDecoder decoder_{{.num_pages = 64,
                        .page_size = 4,
                        .max_model_len = 64,
                        .max_batch_tokens = 48,
                        .max_logits = 100,
                        .max_hidden = 100,
                        .vocab_size = 50,
                        .num_adapters = 2,
                        .runs_ahead = true}};
  std::map<SequenceId, Live> live_;
  std::int64_t num_copies_ = 0;
};

TEST_P(AnyPlan, GivesEverySequenceItsOwn) {
  const std::size_t depth = GetParam() % 2;
  for (SequenceId id = 1; id <= 150 || scheduler_.has_work();) {
    if (id <= 150 && scheduler_.num_waiting() < 4) submit(id++);
    launch();
    if (scheduler_.num_in_flight() > depth || (scheduler_.num_in_flight() > 0 && below(4) == 0)) finish();
    ASSERT_FALSE(HasFailure());
  }
  while (scheduler_.num_in_flight() > 0) finish();
  EXPECT_GT(num_copies_, 10);
  EXPECT_EQ(scheduler_.num_available_pages(), 64);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AnyPlan, testing::Range(0u, 6u));

}  // namespace
}  // namespace minisgl::testing_support
