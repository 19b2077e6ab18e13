// A handful of sums a size, between two events.
#include "comm/cuda/size_classes.h"

#include <algorithm>
#include <limits>

#include "core/cuda/runtime.h"

namespace minisgl {
namespace {

constexpr std::int64_t kFirstBytes = 4 << 10;
constexpr int kCalls = 20;  // between two looks at the clock
constexpr int kRounds = 3;  // the fastest of them counts

class Stopwatch {
 public:
  Stopwatch() {
    cudaStream_t stream = nullptr;
    MINISGL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_ = CudaStream(stream);
    for (CudaEvent* event : {&begin_, &end_}) {
      cudaEvent_t handle = nullptr;
      MINISGL_CUDA_CHECK(cudaEventCreate(&handle));
      *event = CudaEvent(handle);
    }
  }

  // Milliseconds of kCalls calls on the device.
  float time(const std::function<void(cudaStream_t)>& call) {
    float best = std::numeric_limits<float>::max();
    for (int round = 0; round <= kRounds; ++round) {  // the first one warms up
      MINISGL_CUDA_CHECK(cudaEventRecord(begin_.get(), stream_.get()));
      for (int i = 0; i < kCalls; ++i) call(stream_.get());
      MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
      float milliseconds = 0;
      MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()));
      if (round > 0) best = std::min(best, milliseconds);
    }
    return best;
  }

 private:
  CudaStream stream_;
  CudaEvent begin_, end_;
};

}  // namespace

SizeClasses measure_size_classes(PeerAllReduce& peers, Communicator& host,
                                 const std::function<void(void*, std::int64_t, cudaStream_t)>& nccl) {
  std::int64_t largest = kFirstBytes;
  while (peers.fits(PeerAlgorithm::two_shot, 2 * largest)) largest *= 2;
  void* data = nullptr;
  MINISGL_CUDA_CHECK(cudaMalloc(&data, static_cast<std::size_t>(largest)));
  const CudaHandle<void*, cudaFree> owner(data);
  MINISGL_CUDA_CHECK(cudaMemset(data, 0, static_cast<std::size_t>(largest)));
  Stopwatch stopwatch;
  SizeClasses classes;
  for (std::int64_t bytes = kFirstBytes; bytes <= largest; bytes *= 2) {
    const std::int64_t count = bytes / 2;
    const auto time_peers = [&](PeerAlgorithm algorithm) {
      if (!peers.fits(algorithm, bytes)) return std::numeric_limits<float>::max();
      return stopwatch.time(
          [&](cudaStream_t stream) { peers.all_reduce_sum(algorithm, data, count, DType::bf16, stream); });
    };
    float times[] = {time_peers(PeerAlgorithm::one_shot), time_peers(PeerAlgorithm::two_shot),
                     stopwatch.time([&](cudaStream_t stream) { nccl(data, count, stream); })};
    host.broadcast(times, sizeof(times), 0, 0);
    const auto [one_shot, two_shot, through_nccl] = times;
    if (one_shot <= two_shot && one_shot <= through_nccl) classes.max_one_shot_bytes = bytes;
    if (std::min(one_shot, two_shot) <= through_nccl) classes.max_two_shot_bytes = bytes;
  }
  return classes;
}

}  // namespace minisgl
