// Times kernels between two events: single ones after the caches were overwritten, or rows of them as a graph.
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

float milliseconds_between(const CudaEvent& start, const CudaEvent& end) {
  MINISGL_CUDA_CHECK(cudaEventSynchronize(end.get()));
  float ms = 0;
  MINISGL_CUDA_CHECK(cudaEventElapsedTime(&ms, start.get(), end.get()));
  return ms;
}

// The index whose least time is the least; the best of the first round are timed a few times more.
template <typename Time>
std::size_t best(std::size_t count, const Time& time) {
  std::vector<std::pair<float, std::size_t>> timed;
  for (std::size_t i = 0; i < count; ++i) timed.emplace_back(time(i, true), i);
  const auto by_time = [](const auto& entry) { return entry.first; };
  std::ranges::sort(timed, {}, by_time);
  timed.resize(std::min(count, kFinalists));
  for (auto& [least, i] : timed)
    for (int run = 0; run < kFinalRuns; ++run) least = std::min(least, time(i, false));
  return std::ranges::min(timed, {}, by_time).second;
}

CudaGraphExec recorded(std::size_t turns, cudaStream_t stream, const std::function<void(std::size_t)>& launch) {
  MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  for (std::size_t turn = 0; turn < turns; ++turn) launch(turn);
  cudaGraph_t graph = nullptr;
  MINISGL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  const CudaGraph owner(graph);
  cudaGraphExec_t exec = nullptr;
  MINISGL_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  return CudaGraphExec(exec);
}

}  // namespace

Stopwatch::Stopwatch(void* scrub, Progress& progress)
    : scrub_(scrub), progress_(progress), start_(make_timer()), end_(make_timer()) {}

float Stopwatch::milliseconds(const std::function<void()>& launch, cudaStream_t stream) {
  MINISGL_CUDA_CHECK(cudaMemsetAsync(scrub_, 0, kScrubBytes, stream));
  MINISGL_CUDA_CHECK(cudaEventRecord(start_.get(), stream));
  launch();
  MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream));
  const float ms = milliseconds_between(start_, end_);
  progress_.advance();
  return ms;
}

std::size_t Stopwatch::fastest(std::size_t count, const std::function<void(std::size_t)>& launch, cudaStream_t stream) {
  return best(count, [&](std::size_t i, bool first) {
    if (first) launch(i);
    return milliseconds([&] { launch(i); }, stream);
  });
}

std::size_t fastest_in_a_row(std::size_t count, std::size_t turns,
                             const std::function<void(std::size_t, std::size_t, cudaStream_t)>& launch) {
  cudaStream_t made = nullptr;
  MINISGL_CUDA_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  const CudaStream stream(made);
  const CudaEvent start = make_timer(), end = make_timer();
  std::vector<CudaGraphExec> graphs(count);
  const auto replay = [&](std::size_t i) {
    MINISGL_CUDA_CHECK(cudaEventRecord(start.get(), stream.get()));
    MINISGL_CUDA_CHECK(cudaGraphLaunch(graphs[i].get(), stream.get()));
    MINISGL_CUDA_CHECK(cudaEventRecord(end.get(), stream.get()));
    return milliseconds_between(start, end);
  };
  return best(count, [&](std::size_t i, bool first) {
    if (first) {
      launch(i, 0, stream.get());
      graphs[i] = recorded(turns, stream.get(), [&](std::size_t turn) { launch(i, turn, stream.get()); });
      replay(i);
    }
    return replay(i);
  });
}

}  // namespace minisgl::cuda
