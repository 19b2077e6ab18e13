// From what a user said, a model and a machine to the engine's options.
#pragma once

#include <cstdint>

#include "engine/options.h"
#include "kernels/device.h"
#include "models/model_spec.h"

namespace minisgl {

// What of a loaded model matters here.
struct ModelFacts {
  const ModelSpec& spec;
  DType weight_dtype;
  std::int64_t weight_bytes;
  const Device& device;
};

// `available_bytes`: memory left after the weights were loaded. Throws InputError with one sentence for a setting out
// of its range and for a budget that can't be met: it names weights, cache, workspace, what is available and the one
// flag to change.
EngineConfig choose_config(const EngineOptions& options, const ModelFacts& model, std::int64_t available_bytes);

// 0 is every processor that this process may use. Throws InputError.
int choose_num_threads(std::int64_t num_threads);

// Upper estimate of what a step needs on each rank beside weights and cache: activations of all rows, logits of the
// rows that want them.
std::int64_t workspace_bytes(const ModelSpec& spec, std::int64_t max_batch_tokens, std::int64_t max_running,
                             int num_ranks = 1);

}  // namespace minisgl
