// Times kernels between two events: single ones after the caches were overwritten, or rows of them as a graph.
#include "gemm/cuda/stopwatch.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/cuda/objects.h"

namespace minisgl::cuda {
namespace {

constexpr std::size_t kFinalists = 4;
constexpr int kFinalRuns = 4;

// Of kernels in a row: rounds in which all take turns, and rounds among the best of these.
constexpr int kRounds = 3;
constexpr int kFinalRounds = 9;
constexpr float kWorthwhile = 0.98f;  // of the preferred kernel's time

float milliseconds_between(const CudaEvent& start, const CudaEvent& end) {
  MINISGL_CUDA_CHECK(cudaEventSynchronize(end.get()));
  float ms = 0;
  MINISGL_CUDA_CHECK(cudaEventElapsedTime(&ms, start.get(), end.get()));
  return ms;
}

CudaGraphExec recorded(std::size_t turns, cudaStream_t stream, const std::function<void(std::size_t)>& launch) {
  MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  for (std::size_t turn = 0; turn < turns; ++turn) launch(turn);
  return end_capture(stream);
}

}  // namespace

Stopwatch::Stopwatch(void* scrub, const ThreadPool& pool)
    : scrub_(scrub), pool_(pool), start_(make_timed_event()), end_(make_timed_event()) {}

float Stopwatch::milliseconds(const std::function<void()>& launch, cudaStream_t stream) {
  MINISGL_CUDA_CHECK(cudaMemsetAsync(scrub_, 0, kScrubBytes, stream));
  MINISGL_CUDA_CHECK(cudaEventRecord(start_.get(), stream));
  launch();
  MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream));
  const float ms = milliseconds_between(start_, end_);
  pool_.progress().advance();
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

std::size_t fastest_in_a_row(std::size_t count, std::size_t preferred, std::size_t turns,
                             const std::function<void(std::size_t, std::size_t, cudaStream_t)>& launch) {
  const CudaStream stream = make_stream();
  const CudaEvent start = make_timed_event(), end = make_timed_event();
  std::vector<CudaGraphExec> graphs(count);
  for (std::size_t i = 0; i < count; ++i) {
    launch(i, 0, stream.get());
    graphs[i] = recorded(turns, stream.get(), [&](std::size_t turn) { launch(i, turn, stream.get()); });
  }
  std::vector<std::vector<float>> times(count);
  const auto replay = [&](std::size_t i) {
    MINISGL_CUDA_CHECK(cudaEventRecord(start.get(), stream.get()));
    MINISGL_CUDA_CHECK(cudaGraphLaunch(graphs[i].get(), stream.get()));
    MINISGL_CUDA_CHECK(cudaEventRecord(end.get(), stream.get()));
    times[i].push_back(milliseconds_between(start, end));
  };
  const auto median = [&](std::size_t i) {
    const auto middle = times[i].begin() + static_cast<std::ptrdiff_t>(times[i].size() / 2);
    std::ranges::nth_element(times[i], middle);
    return *middle;
  };
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const std::size_t i : order) replay(i);  // also brings the GPU to its clock
  for (auto& taken : times) taken.clear();
  for (int round = 0; round < kRounds; ++round)
    for (const std::size_t i : order) replay(i);
  std::ranges::sort(order, {}, median);
  if (count > kFinalists) {
    const bool among_best =
        std::find(order.begin(), order.begin() + kFinalists, preferred) != order.begin() + kFinalists;
    order.resize(kFinalists);
    if (!among_best) order.push_back(preferred);
  }
  for (auto& taken : times) taken.clear();
  for (int round = 0; round < kFinalRounds; ++round)
    for (const std::size_t i : order) replay(i);
  const std::size_t least = std::ranges::min(order, {}, median);
  return median(least) < kWorthwhile * median(preferred) ? least : preferred;
}

}  // namespace minisgl::cuda
