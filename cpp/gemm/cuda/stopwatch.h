// Which of several kernels takes the least time, measured on the GPU with their operands out of its caches.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>

#include "core/cuda/runtime.h"
#include "core/progress.h"

namespace minisgl::cuda {

// What is overwritten before a timed run: more than second-level caches hold.
constexpr std::size_t kScrubBytes = std::size_t{128} << 20;

class Stopwatch {
 public:
  // `scrub` has kScrubBytes of the device's memory. `progress`, where it isn't null, advances with every run.
  Stopwatch(void* scrub, Progress* progress);

  // Of the kernels that launch(0) to launch(count - 1) queue on `stream` the one whose shortest run was the shortest:
  // each runs twice, the first time to load it, the best of them a few times more. Waits for the stream.
  std::size_t fastest(std::size_t count, const std::function<void(std::size_t)>& launch, cudaStream_t stream);

 private:
  float milliseconds(const std::function<void()>& launch, cudaStream_t stream);

  void* scrub_;
  Progress* progress_;
  CudaEvent start_, end_;
};

}  // namespace minisgl::cuda
