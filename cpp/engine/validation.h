// What a request must satisfy before the engine takes it, whatever the other requests are: lengths and tokens, which
// guard memory, and numbers that the sampler can calculate with. What an API promises beyond that is SamplingParams'
// business in Python.
#pragma once

#include <optional>
#include <string>

#include "engine/options.h"
#include "engine/request.h"
#include "models/model_spec.h"

namespace minisgl {

inline constexpr std::int32_t max_priority = 100;  // either way
inline constexpr std::int32_t max_logprobs = 20;   // alternatives that a request may ask for

struct RequestFault {
  ErrorCode code;
  std::string message;  // a sentence for the client: the field, its value, what is allowed
};

// Nothing when the request can be served. `config` is the engine's.
std::optional<RequestFault> find_fault(const Request& request, const ModelSpec& spec, const EngineConfig& config);

}  // namespace minisgl
