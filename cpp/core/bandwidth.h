// The ceiling of everything that is bound by memory: how fast these threads read it, here and now.
#pragma once

#include <cstddef>

#include "core/thread_pool.h"

namespace minisgl {

// Bytes per second that all threads of `pool` together read from a buffer of `bytes` (larger than the last-level
// cache): the median of several sweeps over it.
double measure_read_bandwidth(ThreadPool& pool, std::size_t bytes = std::size_t{512} << 20);

}  // namespace minisgl
