// Chunks that keep a step's time, on machines that are linear up to noise.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "sched/scheduler.h"
#include "sched/step_cost.h"

namespace minisgl {
namespace {

// A machine whose steps take this long.
struct Machine {
  double base, chunk, per_decode, per_row, per_pair;
  double seconds(const StepShape& shape) const {
    return base + (shape.prefill_rows > 0 ? chunk : 0) + per_decode * static_cast<double>(shape.decode_rows) +
           per_row * static_cast<double>(shape.prefill_rows) +
           per_pair * static_cast<double>(shape.decode_pairs + shape.prefill_pairs);
  }
};

const Machine cpu{5e-3, 0, 0.4e-3, 0.25e-3, 20e-9};
const Machine gpu{8e-3, 3e-3, 5e-6, 18e-6, 0.2e-9};

TEST(StepCost, LearnsALinearMachine) {
  for (const Machine& machine : {cpu, gpu}) {
    StepCost cost(1.0);
    std::mt19937 random(3);
    for (int i = 0; i < 300; ++i) {
      StepShape shape;
      shape.add_decode(static_cast<std::int64_t>(random() % 4000), static_cast<std::int64_t>(random() % 32));
      if (i % 2 == 0) {
        shape.add_prefill(static_cast<std::int64_t>(random() % 8000), 1 + static_cast<std::int64_t>(random() % 500));
      }
      cost.learn(shape, machine.seconds(shape));
    }
    StepShape shape;
    shape.add_decode(1000, 16);
    EXPECT_NEAR(cost.predict(shape), machine.seconds(shape), 0.05 * machine.seconds(shape));
    shape.add_prefill(5000, 300);
    EXPECT_NEAR(cost.predict(shape), machine.seconds(shape), 0.05 * machine.seconds(shape));
  }
}

TEST(StepCost, AStepIsNeverWithoutProgress) {
  StepCost cost(1e-9);
  StepShape shape;
  shape.add_decode(100, 16);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(cost.rows_that_fit(shape, 0), StepCost::kLeastRows);
    StepShape step = shape;
    step.add_prefill(0, StepCost::kLeastRows);
    EXPECT_EQ(cost.rows_that_fit(step, 0), 0);
    cost.learn(step, 0.1);
  }
}

TEST(StepCost, ChunksGrowStepByStep) {
  StepCost cost(1.0);
  StepShape decodes;
  decodes.add_decode(100, 16);
  std::int64_t before = 0;
  for (int i = 0; i < 10; ++i) {
    const std::int64_t rows = cost.rows_that_fit(decodes, 0);
    EXPECT_LE(rows, std::max(2 * before, StepCost::kLeastRows));
    StepShape step = decodes;
    step.add_prefill(0, rows);
    cost.learn(step, gpu.seconds(step));
    before = rows;
  }
  EXPECT_GT(before, 4000);
}

// The scheduler beside a machine: 16 sequences decode, and prompts of 8192 tokens come one after the other.
struct Record {
  std::vector<double> latencies;  // of steps with sequences that decode, seconds
  int num_prompts = 0;            // that were completed
};

Record serve(const Machine& machine, double target, double noise) {
  std::mt19937 random(11);
  std::normal_distribution<double> normal(1.0, noise);
  Scheduler scheduler({.num_pages = 4096,
                       .page_size = 16,
                       .max_running = 64,
                       .max_batch_tokens = 2048,
                       .prefix_cache = false,
                       .target_step_seconds = target});
  SequenceId next = 0;
  for (int i = 0; i < 16; ++i) {
    scheduler.add({.id = ++next, .prompt = std::vector<std::int32_t>(64, 5), .max_tokens = 3000});
  }
  Record result;
  for (int step = 0; step < 2000; ++step) {
    if (scheduler.num_waiting() == 0 && scheduler.num_running() <= 16) {
      scheduler.add({.id = ++next, .prompt = std::vector<std::int32_t>(8192, 5), .max_tokens = 1});
    }
    const StepPlan& plan = scheduler.plan();
    StepShape shape;
    std::vector<std::int32_t> drawn;
    std::vector<SequenceId> ended;
    for (const SequenceStep& part : plan.sequences) {
      part.id <= 16 && part.num_rows == 1 ? shape.add_decode(part.start_position, 1)
                                          : shape.add_prefill(part.start_position, part.num_rows);
      if (part.num_draws > 0) drawn.push_back(7);
      if (part.id > 16 && part.num_draws > 0) ended.push_back(part.id);
    }
    const double seconds = machine.seconds(shape) * std::max(0.5, normal(random));
    if (shape.decode_rows > 0) result.latencies.push_back(seconds);
    StepTokens tokens;
    accept_drafts(plan, drawn, tokens);
    scheduler.complete(tokens, seconds);
    for (const SequenceId id : ended) scheduler.remove(id);
    result.num_prompts += static_cast<int>(ended.size());
  }
  std::ranges::sort(result.latencies);
  return result;
}

TEST(StepCost, DecodingKeepsItsTargetBesideLongPrompts) {
  struct Case {
    Machine machine;
    double target;
  };
  for (const auto& [machine, target] : {Case{cpu, 0.05}, Case{cpu, 0.2}, Case{gpu, 0.03}}) {
    const Record kept = serve(machine, target, 0.03);
    const double p99 = kept.latencies[kept.latencies.size() * 99 / 100];
    EXPECT_LT(p99, 1.1 * target);
    // What fits is used: prompts get on as fast as such steps allow.
    EXPECT_GT(kept.latencies[kept.latencies.size() / 2], 0.75 * target);
    EXPECT_GT(kept.num_prompts, 2);
    const Record unbounded = serve(machine, 0, 0.03);
    EXPECT_GT(unbounded.latencies[unbounded.latencies.size() * 99 / 100], 1.5 * target);
  }
}

}  // namespace
}  // namespace minisgl
