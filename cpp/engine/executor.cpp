// Makes a plan into the model's batch and into queries, and runs them.
#include "engine/executor.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "engine/token_mask.h"
#include "sched/scheduler.h"

namespace minisgl {
namespace {

constexpr std::int32_t kUnusedPage = 0;  // of steps that nobody asked for: it is written to before anybody uses it

// Steps of other sizes are filled up to the next of these.
std::vector<std::int64_t> recorded_sizes(std::int64_t max_sequences) {
  constexpr std::int64_t largest = 512;
  std::vector<std::int64_t> sizes;
  for (std::int64_t size = 1; size < std::min(max_sequences, largest);) {
    sizes.push_back(size);
    size += size < 4 ? size : size < 16 ? 4 : size < 64 ? 8 : size < 128 ? 16 : 32;
  }
  sizes.push_back(std::min(max_sequences, largest));
  std::ranges::reverse(sizes);
  return sizes;
}

// How many rows the prompts' steps are rehearsed with: what a device chooses for one of these numbers it takes for
// those below, down to the one before.
std::vector<std::int64_t> rehearsed_rows(std::int64_t most) {
  std::vector<std::int64_t> counts;
  for (std::int64_t rows = 16; rows < most; rows += rows < 64 ? 16 : rows) counts.push_back(rows);
  counts.push_back(most);
  return counts;
}

}  // namespace

bool uses_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
}

bool depends_on_output(const SamplingParams& params) {
  return uses_penalties(params) || !params.bad_words.empty();
}

bool needs_latest_token(const SamplingParams& params) {
  return std::ranges::any_of(params.bad_words, [](const auto& word) { return word.size() > 1; });
}

StepLimits step_limits(const EngineConfig& config, const ModelSpec& spec) {
  const std::int64_t sequences = std::min(config.max_running, config.max_batch_tokens);
  return {.rows = config.max_batch_tokens,
          .sequences = sequences,
          .penalized = std::min(sequences, config.max_penalized),
          .logits = sequences + SchedulerOptions{}.max_prompt_logits + config.max_drafts,
          .hidden = std::min(SchedulerOptions{}.max_prompt_hidden, config.max_batch_tokens),
          .positions = config.max_model_len,
          .pages = config.num_pages,
          .vocab_size = spec.vocab_size};
}

Executor::Executor(Model& model, Device& device, KvCache cache, const Adapters& adapters)
    : model_(model), device_(device), cache_(std::move(cache)), adapters_(adapters) {}

Executor::Prepared Executor::prepare(const StepLimits& limits, bool record_decodes, const RecordProgress& progress) {
  model_.set_context(limits.positions);
  if (!device_.records_steps()) return {};
  const std::int64_t at_first = device_.available_memory();
  device_.reserve(limits);
  model_.reserve(limits);
  for (const std::int64_t rows : rehearsed_rows(limits.rows)) rehearse(rows, limits.positions);
  const std::int64_t reserved = device_.available_memory();
  if (record_decodes) record(recorded_sizes(limits.sequences), progress);
  // The device's memory is everybody's: what others give back meanwhile must not come out as less than nothing.
  const auto taken = [](std::int64_t before, std::int64_t after) { return std::max(before - after, std::int64_t{0}); };
  return {.workspace_bytes = taken(at_first, reserved), .graph_bytes = taken(reserved, device_.available_memory())};
}

void Executor::rehearse(std::int64_t num_rows, std::int64_t max_positions) {
  const std::vector<std::int32_t> zeros(static_cast<std::size_t>(num_rows), 0);
  const std::vector<std::int32_t> pages(static_cast<std::size_t>(max_positions / cache_.page_size() + 1), kUnusedPage);
  std::vector<std::int32_t> positions;
  std::vector<ops::SequenceRows> sequences;
  for (std::int64_t first = 0; first < num_rows; first += max_positions) {
    const std::int64_t count = std::min(num_rows - first, max_positions);
    sequences.push_back({static_cast<std::int32_t>(first), static_cast<std::int32_t>(count), 0, pages.data()});
    for (std::int64_t i = 0; i < count; ++i) positions.push_back(static_cast<std::int32_t>(i));
  }
  const StepBatch batch{zeros, positions, sequences, {}, cache_.page_size()};
  device_.begin_step(batch, {});
  device_.run_step([&] { model_.rehearse(batch, cache_); });
  device_.take_outputs();
  device_.pool().progress().advance();
}

void Executor::record(const std::vector<std::int64_t>& sizes, const RecordProgress& progress) {
  SamplingParams greedy;
  greedy.temperature = 0.0f;
  std::int64_t recorded = 0;
  for (const std::int64_t size : sizes) {
    const auto count = static_cast<std::size_t>(size);
    const std::vector<std::int32_t> zeros(count, 0);
    std::vector<std::int32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    std::vector<ops::SequenceRows> sequences;
    for (const std::int32_t row : rows) sequences.push_back({row, 1, 0, &kUnusedPage});
    const std::vector<LogitQuery> queries(count, LogitQuery{.params = &greedy});
    const StepBatch batch{zeros, zeros, sequences, rows, cache_.page_size()};
    Tensor logits{};
    device_.record_step(
        batch, queries, [&] { logits = model_.forward(batch, cache_); }, [&] { device_.sample(logits); });
    device_.pool().progress().advance();
    if (progress) progress(++recorded, std::ssize(sizes));
  }
}

double Executor::open_host_tier(std::int64_t num_pages, std::function<void()> on_change) {
  host_ = device_.make_host_pages({.planes = cache_.planes(),
                                   .num_device_pages = cache_.num_pages(),
                                   .num_pages = num_pages,
                                   .on_change = std::move(on_change)});
  const double seconds = host_->measure_page_seconds();
  host_->start();
  return seconds;
}

void Executor::close_host_tier() noexcept {
  if (!host_) return;
  try {
    device_.synchronize();
  } catch (const std::exception& error) {
    log_line(LogLevel::error, std::string("the device's last step failed: ") + error.what());
  }
  host_.reset();
}

void Executor::copy(const TierCopies& copies) {
  for (const auto& [source, destination] : copies.pages) {
    copies.to_host ? host_->copy_out(source, destination) : host_->copy_in(source, destination);
  }
  host_->end_copies(copies.number);
}

void Executor::add(SequenceId id, SequenceSampling sampling) {
  const auto [iterator, inserted] = sequences_.try_emplace(id, LiveSequence{.sampling = std::move(sampling)});
  MINISGL_CHECK(inserted, "sequence ", id, " is live");
  LiveSequence& sequence = iterator->second;
  sequence.needs_latest_token = needs_latest_token(sequence.sampling.params);
  if (sequence.needs_latest_token) sequence.generated = sequence.sampling.resumed;
}

void Executor::remove(SequenceId id) {
  MINISGL_CHECK(sequences_.erase(id) == 1, "sequence ", id, " is not live");
}

const Executor::LiveSequence& Executor::live(SequenceId id) const {
  const auto entry = sequences_.find(id);
  MINISGL_CHECK(entry != sequences_.end(), "sequence ", id, " is not live");
  return entry->second;
}

void Executor::append(SequenceId id, std::span<const std::int32_t> tokens) {
  LiveSequence& sequence = live(id);
  if (sequence.seen) {
    sequence.seen->add_output(tokens);
  } else {
    sequence.sampling.resumed.insert(sequence.sampling.resumed.end(), tokens.begin(), tokens.end());
  }
}

void Executor::mask(SequenceId id, std::span<const std::uint32_t> words) {
  LiveSequence& sequence = live(id);
  sequence.mask.assign(words.begin(), words.end());
  if (words.empty()) allow(sequence);
}

// Without a mask, its allowed_token_ids are one.
void Executor::allow(LiveSequence& sequence) const {
  const std::vector<std::int32_t>& allowed = sequence.sampling.params.allowed_token_ids;
  if (!sequence.mask.empty() || allowed.empty()) return;
  sequence.mask = mask_of(allowed, model_.spec().vocab_size);
}

void Executor::pause(SequenceId id, std::span<const std::int32_t> output) {
  LiveSequence& sequence = live(id);
  sequence.sampling.resumed.assign(output.begin(), output.end());
  sequence.seen.reset();
  sequence.has_started = false;
}

const SequenceSampling& Executor::sampling(SequenceId id) const {
  return live(id).sampling;
}

void Executor::launch(const StepPlan& plan) {
  MINISGL_CHECK(!awaits_masks(), "the step before awaits masks");
  build_batch(plan);
  const StepBatch batch{plan.tokens, positions_, rows_, plan.logit_rows, cache_.page_size(), plan.hidden_rows};
  device_.begin_step(batch, queries_);
  if (plan.copies_before > 0) host_->hold_steps(plan.copies_before);
  for (const PagePair& copy : plan.copies) cache_.copy_page(device_, copy.source, copy.destination);
  const auto forward = [&] { logits_ = model_.forward(batch, cache_); };
  if (awaits_masks()) return device_.run_forward(forward);
  device_.run_step([&] {
    forward();
    if (!queries_.empty()) device_.sample(logits_);
  });
}

void Executor::draw(std::span<const SequenceId> withdrawn) {
  masks_.clear();
  for (const auto& [query, id] : awaiting_) {
    const auto sequence = sequences_.find(id);
    const bool draws = sequence != sequences_.end() && std::ranges::find(withdrawn, id) == withdrawn.end();
    masks_.push_back({query, draws ? TokenMask(sequence->second.mask) : TokenMask()});
  }
  awaiting_.clear();
  device_.run_sampling(masks_, [&] { device_.sample(logits_); });
}

StepOutputs Executor::take() {
  StepOutputs outputs = device_.take_outputs();
  device_.pool().progress().advance();
  return outputs;
}

void Executor::build_batch(const StepPlan& plan) {
  live_.clear();
  positions_.clear();
  rows_.clear();
  for (const SequenceStep& step : plan.sequences) {
    LiveSequence& sequence = live(step.id);
    std::vector<PageId>& table = sequence.page_table;
    table.resize(step.num_kept_pages);
    const auto new_pages = plan.new_pages.begin() + step.first_new_page;
    table.insert(table.end(), new_pages, new_pages + step.num_new_pages);
    for (std::int32_t i = 0; i < step.num_rows; ++i) positions_.push_back(step.start_position + i);
    if (step.adapter != 0 && sequence.adapter == nullptr) sequence.adapter = adapters_.at(step.adapter);
    rows_.push_back({.first_row = step.first_row,
                     .num_rows = step.num_rows,
                     .start_position = step.start_position,
                     .page_table = table.data(),
                     .adapter = sequence.adapter.get()});
    live_.push_back(&sequence);
    if (!sequence.has_started) start(sequence);
    if (sequence.needs_latest_token) note_generated(sequence, step, plan);
  }
  queries_.clear();
  for (std::size_t i = 0; i < plan.targets.size(); ++i) {
    queries_.push_back(query_for(plan.logit_rows[i], plan.targets[i], plan));
    if (queries_.back().awaits_mask) {
      awaiting_.push_back({static_cast<std::int32_t>(i), plan.sequences[plan.targets[i].sequence].id});
    }
  }
}

// Makes what the sampling of a sequence needs on the device, at its first step: those that wait in the queue take no
// room there.
void Executor::start(LiveSequence& sequence) const {
  sequence.has_started = true;
  const SequenceSampling& sampling = sequence.sampling;
  if (uses_penalties(sampling.params)) {
    sequence.seen = device_.make_seen_tokens(model_.spec().vocab_size, sampling.params.repetition_penalty != 1.0f);
    sequence.seen->add_output(sampling.resumed);
    sequence.seen->add_prompt(sampling.prompt);
  }
  allow(sequence);
}

// Every row of a generated token says which token it is: a sequence that needs its latest token is planned only with
// tokens that are known.
void Executor::note_generated(LiveSequence& sequence, const SequenceStep& step, const StepPlan& plan) {
  std::vector<std::int32_t>& generated = sequence.generated;
  for (std::int32_t i = 0; i < step.num_rows; ++i) {
    const std::int64_t index = step.start_position + i - sequence.sampling.prompt_len;
    if (index < 0) continue;
    if (index >= std::ssize(generated)) generated.resize(static_cast<std::size_t>(index) + 1);
    generated[static_cast<std::size_t>(index)] = plan.tokens[static_cast<std::size_t>(step.first_row + i)];
  }
}

// Tokens that may not follow the `num_generated` ones.
std::span<const std::int32_t> Executor::bans_of(LiveSequence& sequence, std::int64_t num_generated) {
  const SequenceSampling& sampling = sequence.sampling;
  const bool bans_stops = num_generated < sampling.min_tokens;
  if (sampling.params.bad_words.empty()) {
    return bans_stops ? std::span(sampling.stop_tokens) : std::span<const std::int32_t>();
  }
  std::vector<std::int32_t>& banned = sequence.banned;
  banned.clear();
  if (bans_stops) banned = sampling.stop_tokens;
  for (const std::vector<std::int32_t>& word : sampling.params.bad_words) {
    const std::span before(word.data(), word.size() - 1);
    if (before.size() > sequence.generated.size()) continue;
    if (std::ranges::equal(before, std::span(sequence.generated).last(before.size()))) banned.push_back(word.back());
  }
  return banned;
}

LogitQuery Executor::query_for(std::int32_t row, const LogitTarget& target, const StepPlan& plan) const {
  const SequenceStep& step = plan.sequences[target.sequence];
  LiveSequence& sequence = *live_[target.sequence];
  const SequenceSampling& sampling = sequence.sampling;
  if (target.token != LogitTarget::kSample) {
    return {.target = target.token, .num_top = sampling.prompt_logprobs, .params = &sampling.params};
  }
  MINISGL_CHECK(step.num_drafts() == 0 || !depends_on_output(sampling.params), "drafts for sequence ", step.id,
                ", whose distribution depends on its output");
  MINISGL_CHECK(step.awaits_mask == 0 || !sequence.mask.empty(), "sequence ", step.id, " has no masks");
  // The index of the new token among the generated ones: the same however the sequence got here.
  const std::int64_t index = step.start_position + row - step.first_row + 1 - sampling.prompt_len;
  const SamplingParams& params = sampling.params;
  return {.num_top = sampling.logprobs,
          .params = &params,
          .processors = {.bias = params.logit_bias,
                         .penalties = {.repetition = params.repetition_penalty,
                                       .presence = params.presence_penalty,
                                       .frequency = params.frequency_penalty,
                                       .seen = sequence.seen.get()},
                         .banned = bans_of(sequence, index),
                         .mask = sequence.mask},
          .position = static_cast<std::uint64_t>(index),
          .awaits_mask = step.awaits_mask != 0};
}

}  // namespace minisgl
