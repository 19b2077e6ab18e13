// A request on its way into the batch: what the scheduler and what the ranks are told of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "models/model_spec.h"
#include "sched/sequence.h"

namespace minisgl {

struct Newcomer {
  SequenceSampling sampling;
  NewSequence sequence;
};

// What ends a request, sorted: its own stop tokens, and the model's unless it ignores them.
std::vector<std::int32_t> stop_tokens_of(const Request& request, const ModelSpec& spec);

// Takes prompt and sampling parameters out of the request, which arrived at that time.
Newcomer make_newcomer(SequenceId id, Request& request, std::vector<std::int32_t> stop_tokens,
                       std::chrono::steady_clock::time_point arrived);

}  // namespace minisgl
