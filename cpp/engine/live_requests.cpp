// Bookkeeping per request: token counts, stop conditions, timings.
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
                   .max_tokens = request.max_tokens,
                   .stop_tokens = std::move(stop_tokens),
                   .has_logprobs = request.logprobs >= 0,
                   .has_prompt_logprobs = request.prompt_logprobs >= 0,
                   .submitted = submitted};
  if (live.has_prompt_logprobs) {
    // Nothing comes before the first token, so nothing could have predicted it.
    live.prompt_logprobs.push_back({request.prompt[0], std::numeric_limits<float>::quiet_NaN(), {}});
  }
  const bool inserted = sequence_of_.try_emplace(request.id, next_sequence_).second;
  MINISGL_CHECK(inserted, "request ", request.id, " is live");
  requests_.emplace(next_sequence_, std::move(live));
  return next_sequence_++;
}

std::optional<SequenceId> LiveRequests::find(std::uint64_t request_id) const {
  const auto place = sequence_of_.find(request_id);
  return place == sequence_of_.end() ? std::nullopt : std::optional(place->second);
}

std::vector<SequenceId> LiveRequests::sequences() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, request] : requests_) ids.push_back(id);
  return ids;
}

void LiveRequests::mark_started(const StepPlan& plan, Clock::time_point now) {
  for (const SequenceStep& step : plan.sequences) {
    std::optional<Clock::time_point>& started = requests_.at(step.id).started;
    if (!started) started = now;
  }
}

LiveRequests::Collected LiveRequests::collect(const StepPlan& plan, std::span<TokenOutput> results,
                                              Clock::time_point now) {
  Collected collected;
  std::size_t next = 0;
  for (std::size_t index = 0; index < plan.sequences.size(); ++index) {
    const SequenceStep& step = plan.sequences[index];
    const auto belongs = [&] {
      return next < results.size() && plan.targets[next].sequence == static_cast<std::int32_t>(index);
    };
    const auto place = requests_.find(step.id);
    if (place == requests_.end()) {
      while (belongs()) ++next;
      continue;
    }
    LiveRequest& request = place->second;
    while (belongs() && plan.targets[next].token != LogitTarget::kSample) {
      request.prompt_logprobs.push_back(std::move(results[next++]));
    }
    RequestOutput output{.id = request.id};
    if (step.samples) {
      MINISGL_CHECK(belongs(), "no token for request ", step.id);
      if (request.num_generated == 0) end_prefill(request, output, now);
      const std::int32_t token = results[next].token;
      output.tokens.push_back(std::move(results[next++]));
      output.has_logprobs = request.has_logprobs;
      ++request.num_generated;
      ++counts_.generated_tokens;
      if (std::binary_search(request.stop_tokens.begin(), request.stop_tokens.end(), token)) {
        output.finish = FinishReason::stop;
      } else if (request.num_generated == request.max_tokens) {
        output.finish = FinishReason::length;
      }
    } else if (request.max_tokens == 0 && step.start_position + step.num_rows == request.prompt_len) {
      end_prefill(request, output, now);
      output.finish = FinishReason::length;
    } else {
      continue;  // in the middle of its prefill
    }
    if (output.finish != FinishReason::none) {
      set_times(output, request, now);
      collected.ended.push_back(step.id);
      forget(place);
    }
    collected.outputs.push_back(std::move(output));
  }
  MINISGL_CHECK(next == results.size(), results.size() - next, " results belong to no sequence");
  return collected;
}

void LiveRequests::forget(std::unordered_map<SequenceId, LiveRequest>::iterator entry) {
  sequence_of_.erase(entry->second.id);
  requests_.erase(entry);
}

void LiveRequests::end_prefill(LiveRequest& request, RequestOutput& output, Clock::time_point now) {
  request.first_token = now;
  counts_.prompt_tokens += request.prompt_len;
  output.prompt_logprobs = std::exchange(request.prompt_logprobs, {});
}

RequestOutput LiveRequests::end(SequenceId id, FinishReason reason, Clock::time_point now) {
  const auto place = requests_.find(id);
  MINISGL_CHECK(place != requests_.end(), "sequence ", id, " is not live");
  RequestOutput output{.id = place->second.id, .finish = reason};
  set_times(output, place->second, now);
  forget(place);
  return output;
}

void LiveRequests::set_times(RequestOutput& output, const LiveRequest& request, Clock::time_point now) {
  const Clock::time_point started = request.started.value_or(now);
  const Clock::time_point first_token = request.first_token.value_or(now);
  output.queue_seconds = seconds(started - request.submitted);
  output.prefill_seconds = seconds(first_token - started);
  output.decode_seconds = seconds(now - first_token);
}

}  // namespace minisgl
