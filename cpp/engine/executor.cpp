// From a plan to the model's batch, and from its logits to tokens.
#include "engine/executor.h"

#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

bool uses_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
}

}  // namespace

Executor::Executor(Model& model, ThreadPool& pool, KvCache cache)
    : model_(model), pool_(pool), cache_(std::move(cache)), scratch_(pool.num_threads()) {}

void Executor::add(SequenceId id, SequenceSampling sampling) {
  const bool inserted = sequences_.try_emplace(id, LiveSequence{.sampling = std::move(sampling)}).second;
  MINISGL_CHECK(inserted, "sequence ", id, " is live");
}

void Executor::remove(SequenceId id) {
  MINISGL_CHECK(sequences_.erase(id) == 1, "sequence ", id, " is not live");
}

std::vector<TokenOutput> Executor::execute(const StepPlan& plan) {
  build_batch(plan);
  const std::span<float> logits = model_.forward({plan.tokens, positions_, rows_, plan.logit_rows}, cache_);
  const auto num_logits = static_cast<std::int64_t>(plan.logit_rows.size());
  const std::int64_t vocab_size = model_.spec().vocab_size;
  MINISGL_CHECK(static_cast<std::int64_t>(logits.size()) == num_logits * vocab_size, logits.size(), " logits for ",
                num_logits, " rows");

  std::vector<TokenOutput> outputs(num_logits);
  pool_.parallel_for(num_logits, [&](std::int64_t index, int thread) {
    const LogitTarget target = plan.targets[index];
    read_logits(logits.subspan(index * vocab_size, vocab_size), plan.sequences[target.sequence], target.token,
                *live_[target.sequence], scratch_[thread], outputs[index]);
  });
  return outputs;
}

void Executor::build_batch(const StepPlan& plan) {
  live_.clear();
  positions_.clear();
  rows_.clear();
  for (const SequenceStep& step : plan.sequences) {
    LiveSequence& sequence = sequences_.at(step.id);
    std::vector<PageId>& table = sequence.page_table;
    table.resize(step.num_kept_pages);
    const auto new_pages = plan.new_pages.begin() + step.first_new_page;
    table.insert(table.end(), new_pages, new_pages + step.num_new_pages);
    for (std::int32_t i = 0; i < step.num_rows; ++i) positions_.push_back(step.start_position + i);
    rows_.push_back({.first_row = step.first_row,
                     .num_rows = step.num_rows,
                     .start_position = step.start_position,
                     .page_table = table.data()});
    live_.push_back(&sequence);
    count_prompt(sequence, step, plan);
  }
}

void Executor::count_prompt(LiveSequence& sequence, const SequenceStep& step, const StepPlan& plan) {
  const SequenceSampling& sampling = sequence.sampling;
  if (!uses_penalties(sampling.params)) return;
  const bool repetition = sampling.params.repetition_penalty != 1.0f;
  if (!sequence.started) {
    sequence.started = true;
    sequence.counts.in_output.assign(model_.spec().vocab_size, 0);
    if (repetition) sequence.counts.in_prompt.assign(model_.spec().vocab_size, 0);
  }
  if (!repetition) return;
  for (std::int32_t i = 0; i < step.num_rows && step.start_position + i < sampling.prompt_len; ++i) {
    sequence.counts.in_prompt[plan.tokens[step.first_row + i]] = 1;
  }
}

// One row of logits [vocab]; a sequence has at most one sampling row a step, so its counts have one writer.
void Executor::read_logits(std::span<float> logits, const SequenceStep& step, std::int32_t target,
                           LiveSequence& sequence, Scratch& scratch, TokenOutput& output) {
  const SequenceSampling& sampling = sequence.sampling;
  if (target != LogitTarget::kSample) {
    output.token = target;
    output.logprob = token_logprob(logits, target, sampling.prompt_logprobs, output.top);
    return;
  }
  // The index of the new token among the generated ones: the same however the sequence got here.
  const std::int64_t index = step.start_position + step.num_rows - sampling.prompt_len;
  const std::span<const std::int32_t> banned =
      index < sampling.min_tokens ? std::span(sampling.stop_tokens) : std::span<const std::int32_t>();
  std::span<float> changeable = logits;
  if (sampling.logprobs >= 0) {
    scratch.logits.assign(logits.begin(), logits.end());
    changeable = scratch.logits;
  }
  output.token = sample(changeable, sampling.params, sequence.counts, banned, index, scratch.sample);
  if (sampling.logprobs >= 0) output.logprob = token_logprob(logits, output.token, sampling.logprobs, output.top);
  if (!sequence.counts.in_output.empty()) ++sequence.counts.in_output[output.token];
}

}  // namespace minisgl
