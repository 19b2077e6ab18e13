// Which way of summing is the fastest for which size, measured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "comm/communicator.h"
#include "comm/sum_table.h"

namespace minisgl {

// What is measured, and how.
struct SumMeasurement {
  std::int64_t max_bytes;                               // larger sums have one way only
  std::function<bool(SumWay, std::int64_t bytes)> can;  // the same on all ranks
  // Queues the sum of `data`, [count] bf16.
  std::function<void(SumWay, void* data, std::int64_t count, cudaStream_t stream)> sum;
  std::function<void(cudaStream_t)> wait;  // for the stream, with the time limit of a wait
};

// Times every way for every class of sizes up to max_bytes in a recorded graph, as sums are used, smallest first; rank
// 0's times decide for all. After a second the classes that are left go through NCCL in place. Called by all ranks
// together, on the communicator's device; `host` joins them on their CPUs.
SumTable measure_sums(Communicator& host, const SumMeasurement& measurement);

}  // namespace minisgl
