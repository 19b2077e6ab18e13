// What a request must satisfy before the engine takes it: everything that does not depend on the other requests.
#pragma once

#include <optional>
#include <string>

#include "engine/options.h"
#include "engine/request.h"
#include "models/model_spec.h"

namespace minisgl {

inline constexpr std::int32_t max_logprobs = 20;  // alternatives that a request may ask for

struct RequestFault {
  ErrorCode code;
  std::string message;  // a sentence for the client: the field, its value, what is allowed
};

// Nothing when the request can be served. `config` is the engine's.
std::optional<RequestFault> find_fault(const Request& request, const ModelSpec& spec, const EngineConfig& config);

}  // namespace minisgl
