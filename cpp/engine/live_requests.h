// What the engine keeps of its live requests besides their tokens, and how a step's results become their outputs.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"
#include "sched/step_plan.h"

namespace minisgl {

using Clock = std::chrono::steady_clock;

class LiveRequests {
 public:
  struct Counts {
    std::uint64_t prompt_tokens = 0, generated_tokens = 0;
  };

  // `stop_tokens`: what ends this request, sorted.
  void add(const Request& request, std::vector<std::int32_t> stop_tokens, Clock::time_point submitted);
  bool contains(std::uint64_t id) const { return requests_.contains(id); }
  std::size_t size() const { return requests_.size(); }
  std::vector<std::uint64_t> ids() const;
  const Counts& counts() const { return counts_; }  // since the engine's start

  // A step of these sequences begins.
  void mark_started(const StepPlan& plan, Clock::time_point now);
  // Turns the step's results, one a logit row, into one output for each request that has something to say.
  std::vector<RequestOutput> collect(const StepPlan& plan, std::span<TokenOutput> results, Clock::time_point now);
  // The last output of a request; forgets it.
  RequestOutput end(std::uint64_t id, FinishReason reason, Clock::time_point now);
  // Forgets a request whose last output collect() made.
  void erase(std::uint64_t id) { requests_.erase(id); }

 private:
  struct LiveRequest {
    std::int64_t prompt_len, max_tokens;
    std::vector<std::int32_t> stop_tokens;
    bool has_logprobs, has_prompt_logprobs;
    Clock::time_point submitted;
    std::optional<Clock::time_point> started = {}, first_token = {};
    std::int64_t num_generated = 0;
    std::vector<TokenOutput> prompt_logprobs = {};
  };

  static void set_times(RequestOutput& output, const LiveRequest& request, Clock::time_point now);
  void end_prefill(LiveRequest& request, RequestOutput& output, Clock::time_point now);

  std::unordered_map<std::uint64_t, LiveRequest> requests_;
  Counts counts_;
};

}  // namespace minisgl
