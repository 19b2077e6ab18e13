// Weights for measuring: small numbers of a fixed random stream.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"

namespace minisgl {

// [rows, cols] bf16
std::vector<std::uint16_t> random_weights(std::int64_t rows, std::int64_t cols, ThreadPool& pool);

}  // namespace minisgl
