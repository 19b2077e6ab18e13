// What the engine keeps of its live requests besides their tokens, and how a step's results become their outputs.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/pooling.h"
#include "engine/request.h"
#include "sched/step_plan.h"
#include "sched/step_tokens.h"

namespace minisgl {

using Clock = std::chrono::steady_clock;

class LiveRequests {
 public:
  struct Counts {
    std::uint64_t prompt_tokens = 0, generated_tokens = 0;
  };

  // `stop_tokens`: what ends this request, sorted. Its sequence's id is no other's, ever: the id of a request may be
  // used again while a step in flight still computes the sequence.
  SequenceId add(const Request& request, std::vector<std::int32_t> stop_tokens, Clock::time_point submitted);
  // The live request's sequence, if there is one.
  std::optional<SequenceId> find(std::uint64_t request_id) const;
  std::vector<SequenceId> sequences() const;
  const Counts& counts() const { return counts_; }  // since the engine's start

  // A step of these sequences begins.
  void mark_started(const StepPlan& plan, Clock::time_point now);
  struct Collected {
    std::vector<RequestOutput> outputs;
    std::vector<SequenceId> ended;  // sequences whose last output is among them; they are forgotten
  };
  // Turns what comes of the step, a token per logit row and the hidden states, into one output for each request that
  // has something to say. Of a sequence's draws as many are tokens as its list in `drawn` has, up to the one that ends
  // it. What the step made for sequences that ended since it was planned is dropped.
  Collected collect(const StepPlan& plan, const StepTokens& drawn, StepOutputs& results, Clock::time_point now);
  // The same for tokens that the host gave a sequence; they have no log probability (NaN).
  Collected append(SequenceId id, std::span<const std::int32_t> tokens, Clock::time_point now);
  // What the request asked for is complete: its last output, which ends with this token.
  RequestOutput stop(SequenceId id, std::int32_t end_token, Clock::time_point now);
  // The last output of a request; forgets it.
  RequestOutput end(SequenceId id, FinishReason reason, Clock::time_point now);

 private:
  struct LiveRequest {
    std::uint64_t id;
    std::int64_t prompt_len, num_resumed, max_tokens;
    std::vector<std::int32_t> stop_tokens;
    bool has_logprobs, has_prompt_logprobs;
    Clock::time_point submitted;
    std::optional<Clock::time_point> started = {}, first_token = {};
    std::int64_t num_cached = 0;  // tokens that its first step found computed
    std::int64_t num_generated = 0;
    std::int64_t num_drafts = 0, num_accepted = 0;
    std::vector<TokenOutput> prompt_logprobs = {};
    std::optional<Pooler> pooler = {};  // where it asks for an embedding
  };

  using Iterator = std::unordered_map<SequenceId, LiveRequest>::iterator;

  void forget(Iterator request);
  void add_token(LiveRequest& request, TokenOutput token, RequestOutput& output);
  void deliver(Iterator request, RequestOutput output, Collected& collected, Clock::time_point now);
  static void set_times(RequestOutput& output, const LiveRequest& request, Clock::time_point now);
  void end_prefill(LiveRequest& request, RequestOutput& output, Clock::time_point now);

  std::unordered_map<SequenceId, LiveRequest> requests_;
  std::unordered_map<std::uint64_t, SequenceId> sequence_of_;  // by the request's id
  SequenceId next_sequence_ = 0;
  Counts counts_;
};

}  // namespace minisgl
