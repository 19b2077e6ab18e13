// A handful of sums per size and way, recorded, between two events.
#include "comm/cuda/measure_sums.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>

#include "core/cuda/objects.h"

namespace minisgl {
namespace {

constexpr std::chrono::milliseconds kPatience{1000};
constexpr int kRounds = 3;  // the fastest of them counts

// Sums in a graph: many small ones, since launching it is part of the time.
int calls_for(std::int64_t num_bytes) {
  return num_bytes <= 1 << 20 ? 20 : 5;
}

class Stopwatch {
 public:
  Stopwatch() {
    for (CudaEvent& event : events_) event = make_timed_event();
  }

  cudaStream_t stream() const { return stream_.get(); }

  // Microseconds of one call on the device. The rounds follow each other without a look at the host, so that all but
  // the first, which doesn't count, begin on all ranks at once.
  float time(const std::function<void(cudaStream_t)>& call, const std::function<void(cudaStream_t)>& wait,
             int num_calls) {
    call(stream_.get());  // NCCL connects on first use, which can't be recorded
    wait(stream_.get());
    const CudaGraphExec graph = record(call, num_calls);
    MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream_.get()));
    MINISGL_CUDA_CHECK(cudaEventRecord(events_[0].get(), stream_.get()));
    for (int round = 1; round <= kRounds; ++round) {
      MINISGL_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaEventRecord(events_[static_cast<std::size_t>(round)].get(), stream_.get()));
    }
    wait(stream_.get());
    float best = std::numeric_limits<float>::infinity();
    for (std::size_t round = 1; round <= kRounds; ++round) {
      float milliseconds = 0;
      MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, events_[round - 1].get(), events_[round].get()));
      best = std::min(best, milliseconds);
    }
    return best * 1000 / static_cast<float>(num_calls);
  }

 private:
  CudaGraphExec record(const std::function<void(cudaStream_t)>& call, int num_calls) {
    MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < num_calls; ++i) call(stream_.get());
    return end_capture(stream_.get());
  }

  CudaStream stream_ = make_stream();
  std::array<CudaEvent, kRounds + 1> events_;
};

// What rank 0 says after each class.
struct Verdict {
  SumWay way;
  std::int32_t go_on;
};

}  // namespace

SumTable measure_sums(Communicator& host, const SumMeasurement& measurement) {
  using Clock = std::chrono::steady_clock;
  void* data = nullptr;
  const auto size = static_cast<std::size_t>(measurement.max_bytes);
  MINISGL_CUDA_CHECK(cudaMalloc(&data, size));
  const CudaHandle<void*, cudaFree> owner(data);
  MINISGL_CUDA_CHECK(cudaMemset(data, 0, size));
  MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
  Stopwatch stopwatch;
  SumTable table;
  const auto use_nccl = [&](std::int64_t num_bytes) {
    measurement.sum(SumWay::in_place, data, num_bytes / 2, stopwatch.stream());
    measurement.wait(stopwatch.stream());
  };
  for (const std::int64_t num_bytes : {SumTable::kFirstBytes, measurement.max_bytes}) use_nccl(num_bytes);  // connects
  host.barrier(0);
  const Clock::time_point start = Clock::now();
  for (int size_class = 0; size_class < SumTable::kNumClasses; ++size_class) {
    const std::int64_t num_bytes = SumTable::bytes_of(size_class);
    if (num_bytes > measurement.max_bytes) break;
    SumTimes times;
    times.fill(std::numeric_limits<float>::infinity());
    for (const SumWay way : {SumWay::in_place, SumWay::registered, SumWay::one_shot, SumWay::two_shot}) {
      if (!measurement.can(way, num_bytes)) continue;
      const auto call = [&](cudaStream_t stream) { measurement.sum(way, data, num_bytes / 2, stream); };
      times[static_cast<std::size_t>(way)] = stopwatch.time(call, measurement.wait, calls_for(num_bytes));
    }
    Verdict verdict{fastest_way(times), Clock::now() - start < kPatience};
    host.broadcast(&verdict, sizeof(verdict), 0, 0);
    table.set(size_class, verdict.way);
    if (!verdict.go_on) break;
  }
  use_nccl(SumTable::kFirstBytes);  // a next call lets it forget the memory of recorded ones, which goes now
  host.barrier(0);
  return table;
}

}  // namespace minisgl
