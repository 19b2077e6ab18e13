// What a step costs the host beside the model: planning it, telling it to other ranks, and handing its tokens to who
// waits for them.
//
// Argument: sequences; a second one: how many of them share their prompt. What is measured here is lost of a step of
// the model, which takes milliseconds. The ceilings are measured beside it: a list of tokens copied, for the scheduler;
// two bare descriptors between the threads, for the queue.
#include <benchmark/benchmark.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "engine/completion_queue.h"
#include "engine/plan_codec.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

constexpr std::int64_t kPromptTokens = 128;

// Those of the first `num_sharing` sequences are the same, the others begin in their own way.
std::vector<std::int32_t> prompt_of(std::int64_t sequence, std::int64_t num_sharing) {
  std::vector<std::int32_t> prompt(kPromptTokens, 7);
  if (sequence >= num_sharing) prompt.front() = static_cast<std::int32_t>(sequence);
  return prompt;
}

std::unique_ptr<Scheduler> decoding_scheduler(std::int64_t num_sequences, std::int64_t max_tokens,
                                              std::int64_t num_sharing = 0) {
  const std::int64_t pages = num_sequences * ((kPromptTokens + max_tokens) / 16 + 2);
  auto scheduler = std::make_unique<Scheduler>(SchedulerOptions{
      .num_pages = pages, .max_running = num_sequences, .max_batch_tokens = num_sequences * kPromptTokens});
  for (std::int64_t id = 0; id < num_sequences; ++id) {
    scheduler->add({.id = static_cast<SequenceId>(id), .prompt = prompt_of(id, num_sharing), .max_tokens = max_tokens});
  }
  return scheduler;
}

// The first decode step, once the prefill is done.
const StepPlan& second_plan(Scheduler& scheduler, std::int64_t num_sequences) {
  const std::vector<std::int32_t> sampled(static_cast<std::size_t>(num_sequences), 11);
  StepTokens drawn;
  accept_drafts(scheduler.plan(), sampled, drawn);
  scheduler.complete(drawn);
  return scheduler.plan();
}

// One decode step of all sequences: plan(), the lists of their tokens, and complete().
void scheduler_step(benchmark::State& state) {
  constexpr std::int64_t max_tokens = 1 << 10;
  const std::vector<std::int32_t> sampled(static_cast<std::size_t>(state.range(0)), 11);
  StepTokens drawn;
  std::unique_ptr<Scheduler> scheduler;
  std::int64_t steps_left = 0;
  for (auto _ : state) {
    if (steps_left == 0) {
      state.PauseTiming();
      scheduler = decoding_scheduler(state.range(0), max_tokens, state.range(1));
      accept_drafts(scheduler->plan(), sampled, drawn);  // the prefill
      scheduler->complete(drawn);
      steps_left = max_tokens - 1;
      state.ResumeTiming();
    }
    accept_drafts(scheduler->plan(), sampled, drawn);
    scheduler->complete(drawn);
    --steps_left;
  }
}

// A sequence from its arrival to its end: add(), a plan with its prefill, remove(). None begins like another.
void scheduler_admission(benchmark::State& state) {
  const auto scheduler = decoding_scheduler(state.range(0), 1);
  const std::vector<std::int32_t> sampled(static_cast<std::size_t>(state.range(0)), 11);
  StepTokens drawn;
  accept_drafts(scheduler->plan(), sampled, drawn);
  scheduler->complete(drawn);
  SequenceId next = static_cast<SequenceId>(state.range(0));
  for (auto _ : state) {
    for (std::int64_t i = state.range(0); i > 0; --i) scheduler->remove(next - static_cast<SequenceId>(i));
    for (std::int64_t i = 0; i < state.range(0); ++i)
      scheduler->add({.id = next, .prompt = prompt_of(static_cast<std::int64_t>(next), 0), .max_tokens = 1}), ++next;
    accept_drafts(scheduler->plan(), sampled, drawn);
    scheduler->complete(drawn);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

struct Ignore final : PlanHandler {
  void add(SequenceId, SequenceSampling) override {}
  void remove(SequenceId) override {}
  void append(SequenceId, std::span<const std::int32_t>) override {}
  void pause(SequenceId, std::span<const std::int32_t>) override {}
  void mask(SequenceId, std::span<const std::uint32_t>) override {}
  void step(const StepPlan&) override {}
  void draw(std::span<const SequenceId>) override {}
  void copy(const TierCopies&, std::uint32_t) override {}
  void shut_down() override {}
};

// A decode step of all sequences as a frame: written by rank 0, read and checked by another.
void plan_encoding(benchmark::State& state) {
  const auto scheduler = decoding_scheduler(state.range(0), 16);
  const StepPlan& plan = second_plan(*scheduler, state.range(0));
  PlanEncoder encoder;
  for (auto _ : state) {
    encoder.clear();
    encoder.step(plan);
    benchmark::DoNotOptimize(encoder.frame().data());
    benchmark::ClobberMemory();
  }
  state.counters["frame_bytes"] = static_cast<double>(encoder.frame().size());
}

void plan_decoding(benchmark::State& state) {
  const auto scheduler = decoding_scheduler(state.range(0), 16);
  PlanEncoder encoder;
  encoder.step(second_plan(*scheduler, state.range(0)));
  PlanDecoder decoder({.num_pages = scheduler->pages().num_total(),
                       .page_size = 16,
                       .max_model_len = 4096,
                       .max_batch_tokens = state.range(0),
                       .max_logits = state.range(0),
                       .vocab_size = 1000});
  Ignore ignore;
  for (auto _ : state) decoder.decode(encoder.frame(), ignore);
}

// Ceiling of scheduler_step: only the tokens of a step, written to a plan and read back.
void token_copy(benchmark::State& state) {
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(state.range(0)), 11);
  std::vector<std::int32_t> plan;
  for (auto _ : state) {
    plan.assign(tokens.begin(), tokens.end());
    benchmark::DoNotOptimize(plan.data());
    benchmark::ClobberMemory();
  }
}

std::vector<RequestOutput> one_token_each(std::int64_t num_sequences) {
  std::vector<RequestOutput> outputs(static_cast<std::size_t>(num_sequences));
  for (std::size_t i = 0; i < outputs.size(); ++i) outputs[i] = {.id = i, .tokens = {TokenOutput{.token = 11}}};
  return outputs;
}

// publish() and take() of a step's outputs on one thread: what the queue itself costs.
void queue_step(benchmark::State& state) {
  CompletionQueue queue;
  for (auto _ : state) {
    queue.publish(one_token_each(state.range(0)));
    benchmark::DoNotOptimize(queue.take().size());
  }
}

void wait_for(int descriptor) {
  pollfd wanted{descriptor, POLLIN, 0};
  poll(&wanted, 1, -1);
}

// From publish() on one thread to the other's take() and back: two wake-ups through descriptors, as a loop waits.
void queue_round_trip(benchmark::State& state) {
  CompletionQueue there, back;
  std::thread echo([&] {
    for (bool last = false; !last;) {
      wait_for(there.event_fd());
      std::vector<RequestOutput> outputs = there.take();
      last = !outputs.empty() && outputs.front().finish != FinishReason::none;
      back.publish(std::move(outputs));
    }
  });
  for (auto _ : state) {
    there.publish(one_token_each(state.range(0)));
    wait_for(back.event_fd());
    benchmark::DoNotOptimize(back.take().size());
  }
  std::vector<RequestOutput> last = one_token_each(1);
  last.front().finish = FinishReason::stop;
  there.publish(std::move(last));
  echo.join();
}

// Ceiling of queue_round_trip: the same wake-ups with nothing to hand over.
void descriptor_round_trip(benchmark::State& state) {
  const int there = eventfd(0, 0), back = eventfd(0, 0);
  std::atomic<bool> last = false;
  std::thread echo([&] {
    while (!last) {
      eventfd_t count;
      wait_for(there);
      eventfd_read(there, &count);
      eventfd_write(back, 1);
    }
  });
  for (auto _ : state) {
    eventfd_t count;
    eventfd_write(there, 1);
    wait_for(back);
    eventfd_read(back, &count);
  }
  last = true;
  eventfd_write(there, 1);
  echo.join();
  close(there);
  close(back);
}

void sequences(benchmark::internal::Benchmark* benchmark) {
  benchmark->Arg(1)->Arg(16)->Arg(64)->Arg(256)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK(scheduler_step)
    ->ArgsProduct({{1, 16, 64, 256}, {0}})
    ->Args({256, 64})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(token_copy)->Apply(sequences);
BENCHMARK(scheduler_admission)->Apply(sequences);
BENCHMARK(plan_encoding)->Apply(sequences);
BENCHMARK(plan_decoding)->Apply(sequences);
BENCHMARK(queue_step)->Apply(sequences);
BENCHMARK(queue_round_trip)->Apply(sequences);
BENCHMARK(descriptor_round_trip)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace minisgl
