// Tells whether two ranks were given the same model, without reading all of it.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "io/weight_source.h"
#include "models/model_spec.h"

namespace minisgl {

// A hash of what the forward pass takes from the configuration, and of every tensor's name, dtype, shape and up to 64
// blocks of 4 KiB at fixed places, the first and the last among them. Two fine-tunes of one model differ in it; it is
// no protection against somebody who forges one. Never 0. Reads at most 256 KiB per tensor, on all of the pool's
// threads.
std::uint64_t fingerprint(const ModelSpec& spec, const WeightSource& source, ThreadPool& pool);

}  // namespace minisgl
