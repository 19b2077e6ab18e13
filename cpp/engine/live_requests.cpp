// Counts the tokens of each request, and ends it at a stop token or at its limit.
#include "engine/live_requests.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"

namespace minisgl {
namespace {

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

SequenceId LiveRequests::add(const Request& request, std::vector<std::int32_t> stop_tokens,
                             Clock::time_point submitted) {
  LiveRequest live{.id = request.id,
                   .prompt_len = static_cast<std::int64_t>(request.prompt.size()),
                   .num_resumed = request.num_resumed,
                   .max_tokens = request.num_to_come(),
                   .stop_tokens = std::move(stop_tokens),
                   .has_logprobs = request.logprobs >= 0,
                   .has_prompt_logprobs = request.prompt_logprobs >= 0,
                   .submitted = submitted};
  if (live.has_prompt_logprobs) {
    // Nothing comes before the first token, so nothing could have predicted it.
    live.prompt_logprobs.push_back({request.prompt[0], std::numeric_limits<float>::quiet_NaN(), {}});
  }
  if (request.pooling.enabled()) live.pooler.emplace(request.pooling);
  const bool inserted = sequence_of_.try_emplace(request.id, next_sequence_).second;
  MINISGL_CHECK(inserted, "request ", request.id, " is live");
  requests_.emplace(next_sequence_, std::move(live));
  return next_sequence_++;
}

std::optional<SequenceId> LiveRequests::find(std::uint64_t request_id) const {
  const auto iterator = sequence_of_.find(request_id);
  return iterator == sequence_of_.end() ? std::nullopt : std::optional(iterator->second);
}

std::vector<SequenceId> LiveRequests::sequences() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  return ids;
}

void LiveRequests::mark_started(const StepPlan& plan, Clock::time_point now) {
  for (const SequenceStep& step : plan.sequences) {
    LiveRequest& request = requests_.at(step.id);
    if (request.started) continue;
    request.started = now;
    request.num_cached = step.start_position;
  }
}

LiveRequests::Collected LiveRequests::collect(const StepPlan& plan, const StepTokens& drawn, StepOutputs& outputs,
                                              Clock::time_point now) {
  Collected collected;
  const std::span<TokenOutput> results = outputs.tokens;
  std::span<const float> hidden = outputs.hidden;  // of the sequences that are still to come
  const std::size_t width = plan.hidden_rows.empty() ? 0 : hidden.size() / plan.hidden_rows.size();
  std::size_t next = 0;  // index into `results`
  for (std::size_t index = 0; index < plan.sequences.size(); ++index) {
    const SequenceStep& step = plan.sequences[index];
    const auto scores = [&] {
      return next < results.size() && plan.targets[next].sequence == static_cast<std::int32_t>(index) &&
             plan.targets[next].token != LogitTarget::kSample;
    };
    const auto iterator = requests_.find(step.id);
    const bool is_live = iterator != requests_.end();
    for (; scores(); ++next) {
      if (is_live) iterator->second.prompt_logprobs.push_back(std::move(results[next]));
    }
    const std::size_t first = next;
    next += static_cast<std::size_t>(step.num_draws);
    MINISGL_CHECK(next <= results.size(), "no token for sequence ", step.id);
    const std::span<const float> rows = hidden.first(static_cast<std::size_t>(step.num_hidden) * width);
    hidden = hidden.subspan(rows.size());
    if (!is_live) continue;
    LiveRequest& request = iterator->second;
    RequestOutput output{.id = request.id};
    if (request.pooler) request.pooler->add(rows, width);
    if (!drawn.of(index).empty()) {
      request.num_drafts += step.num_drafts();
      if (request.num_generated == 0) end_prefill(request, output, now);
      const std::size_t end = first + drawn.of(index).size();
      for (std::size_t i = first; i < end && output.finish == FinishReason::none; ++i) {
        add_token(request, std::move(results[i]), output);
      }
      request.num_accepted += std::ssize(output.tokens) - 1;
    } else if (request.max_tokens == 0 && step.start_position + step.num_rows == request.prompt_len) {
      end_prefill(request, output, now);
      output.finish = request.pooler ? FinishReason::stop : FinishReason::length;
      if (request.pooler) output.embedding = request.pooler->embedding();
    } else {
      continue;  // in the middle of its prefill, or a draw was withdrawn
    }
    deliver(iterator, std::move(output), collected, now);
  }
  MINISGL_CHECK(next == results.size(), results.size() - next, " results belong to no sequence");
  return collected;
}

LiveRequests::Collected LiveRequests::append(SequenceId id, std::span<const std::int32_t> tokens,
                                             Clock::time_point now) {
  const auto iterator = requests_.find(id);
  MINISGL_CHECK(iterator != requests_.end(), "sequence ", id, " is not live");
  RequestOutput output{.id = iterator->second.id};
  for (const std::int32_t token : tokens) {
    if (output.finish != FinishReason::none) break;
    add_token(iterator->second, {.token = token, .logprob = std::numeric_limits<float>::quiet_NaN()}, output);
  }
  Collected collected;
  deliver(iterator, std::move(output), collected, now);
  return collected;
}

void LiveRequests::add_token(LiveRequest& request, TokenOutput token, RequestOutput& output) {
  ++request.num_generated;
  ++counts_.generated_tokens;
  if (std::binary_search(request.stop_tokens.begin(), request.stop_tokens.end(), token.token)) {
    output.finish = FinishReason::stop;
  } else if (request.num_generated == request.max_tokens) {
    output.finish = FinishReason::length;
  }
  output.has_logprobs = request.has_logprobs;
  output.tokens.push_back(std::move(token));
}

void LiveRequests::deliver(Iterator request, RequestOutput output, Collected& collected, Clock::time_point now) {
  if (output.finish != FinishReason::none) {
    set_times(output, request->second, now);
    collected.ended.push_back(request->first);
    forget(request);
  }
  collected.outputs.push_back(std::move(output));
}

void LiveRequests::forget(Iterator request) {
  sequence_of_.erase(request->second.id);
  requests_.erase(request);
}

void LiveRequests::end_prefill(LiveRequest& request, RequestOutput& output, Clock::time_point now) {
  request.first_token = now;
  counts_.prompt_tokens += request.prompt_len;
  output.prompt_logprobs = std::exchange(request.prompt_logprobs, {});
  output.num_cached = std::min(request.num_cached, request.prompt_len - request.num_resumed);
}

RequestOutput LiveRequests::stop(SequenceId id, std::int32_t end_token, Clock::time_point now) {
  const bool has_logprobs = requests_.at(id).has_logprobs;
  RequestOutput output = end(id, FinishReason::stop, now);
  output.tokens.push_back({.token = end_token});  // sure to come: its log probability is 0
  output.has_logprobs = has_logprobs;
  ++counts_.generated_tokens;
  return output;
}

RequestOutput LiveRequests::end(SequenceId id, FinishReason reason, Clock::time_point now) {
  const auto iterator = requests_.find(id);
  MINISGL_CHECK(iterator != requests_.end(), "sequence ", id, " is not live");
  RequestOutput output{.id = iterator->second.id, .finish = reason};
  set_times(output, iterator->second, now);
  forget(iterator);
  return output;
}

void LiveRequests::set_times(RequestOutput& output, const LiveRequest& request, Clock::time_point now) {
  output.num_drafts = request.num_drafts;
  output.num_accepted = request.num_accepted;
  const Clock::time_point started = request.started.value_or(now);
  const Clock::time_point first_token = request.first_token.value_or(now);
  output.queue_seconds = seconds(started - request.submitted);
  output.prefill_seconds = seconds(first_token - started);
  output.decode_seconds = seconds(now - first_token);
}

}  // namespace minisgl
