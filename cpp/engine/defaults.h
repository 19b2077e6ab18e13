// From what a user said, a model and a machine to the engine's options.
#pragma once

#include <cstdint>

#include "engine/options.h"
#include "kernels/device.h"
#include "models/model.h"

namespace minisgl {

// `model` is loaded on `device`; `available_bytes`: memory left after the weights were loaded. Throws InputError with
// one sentence for a setting out of its range and for a budget that can't be met: it names weights, cache, workspace,
// what is available and the one flag to change.
EngineConfig choose_config(const EngineOptions& options, const Model& model, const Device& device,
                           std::int64_t available_bytes);

// What each of a group's `ranks` on one host has of --kv-host-bytes: an equal part, and some where there is some.
EngineOptions part_of_rank(const EngineOptions& options, std::int64_t ranks);

// Throws InputError where this host has no memory for what --kv-host-bytes asks for.
void check_host_memory(const EngineOptions& options);

// 0 is every processor that this process may use. Throws InputError.
int choose_num_threads(std::int64_t num_threads);

}  // namespace minisgl
