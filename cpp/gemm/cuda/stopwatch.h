// Which of several kernels takes the least time, measured on the GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>

#include "core/cuda/runtime.h"
#include "core/thread_pool.h"

namespace minisgl::cuda {

// What is overwritten before a timed run: more than second-level caches hold.
constexpr std::size_t kScrubBytes = std::size_t{128} << 20;

// Times single kernels with their operands out of the caches.
class Stopwatch {
 public:
  // `scrub` has kScrubBytes of the device's memory. Every run advances the progress that `pool` reports to by then.
  Stopwatch(void* scrub, const ThreadPool& pool);

  // Of the kernels that launch(0) to launch(count - 1) queue on `stream` the one whose shortest run was the shortest:
  // each runs twice, the first time to load it, the best of them a few times more. Waits for the stream.
  std::size_t fastest(std::size_t count, const std::function<void(std::size_t)>& launch, cudaStream_t stream);

 private:
  float milliseconds(const std::function<void()>& launch, cudaStream_t stream);

  void* scrub_;
  const ThreadPool& pool_;
  CudaEvent start_, end_;
};

// Of several kernels the one that takes the least time when `turns` of them follow one another in a recorded graph:
// launch(i, turn, stream) queues the one of a turn. Each is launched once before, to load it; then they take turns, so
// that a clock that changes is every kernel's, and medians are compared. Another than the preferred kernel is taken
// only where it is clearly faster. On a stream of its own; it waits for that.
std::size_t fastest_in_a_row(std::size_t count, std::size_t preferred, std::size_t turns,
                             const std::function<void(std::size_t, std::size_t, cudaStream_t)>& launch);

}  // namespace minisgl::cuda
