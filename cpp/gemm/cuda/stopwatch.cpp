// Times kernels between two events, each after the caches were overwritten.
#include "gemm/cuda/stopwatch.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace minisgl::cuda {
namespace {

constexpr std::size_t kFinalists = 4;
constexpr int kFinalRuns = 4;

CudaEvent make_timer() {
  cudaEvent_t event = nullptr;
  MINISGL_CUDA_CHECK(cudaEventCreate(&event));
  return CudaEvent(event);
}

}  // namespace

Stopwatch::Stopwatch(void* scrub, Progress* progress)
    : scrub_(scrub), progress_(progress), start_(make_timer()), end_(make_timer()) {}

float Stopwatch::milliseconds(const std::function<void()>& launch, cudaStream_t stream) {
  MINISGL_CUDA_CHECK(cudaMemsetAsync(scrub_, 0, kScrubBytes, stream));
  MINISGL_CUDA_CHECK(cudaEventRecord(start_.get(), stream));
  launch();
  MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream));
  MINISGL_CUDA_CHECK(cudaEventSynchronize(end_.get()));
  float ms = 0;
  MINISGL_CUDA_CHECK(cudaEventElapsedTime(&ms, start_.get(), end_.get()));
  if (progress_ != nullptr) progress_->advance();
  return ms;
}

std::size_t Stopwatch::fastest(std::size_t count, const std::function<void(std::size_t)>& launch, cudaStream_t stream) {
  std::vector<std::pair<float, std::size_t>> timed;
  for (std::size_t i = 0; i < count; ++i) {
    launch(i);
    timed.emplace_back(milliseconds([&] { launch(i); }, stream), i);
  }
  const auto by_time = [](const auto& entry) { return entry.first; };
  std::ranges::sort(timed, {}, by_time);
  timed.resize(std::min(count, kFinalists));
  for (auto& [least, i] : timed)
    for (int run = 0; run < kFinalRuns; ++run) least = std::min(least, milliseconds([&, i = i] { launch(i); }, stream));
  return std::ranges::min(timed, {}, by_time).second;
}

}  // namespace minisgl::cuda
