// Sums over GPUs by message size, 1 KB to 64 MB (NCCL: to 1 GiB), one process a GPU:
//
//   comm_bench_gpu [ranks]     (default: one a GPU; with fewer GPUs, ranks share them and pose as hosts)
//
// Columns: NCCL, NCCL on symmetric memory, one-shot, two-shot, each as launched and replayed from a graph; then for
// messages up to 512 KB of rows of 4096 bf16: NCCL and a separate residual + RMSNorm, and the fused kernel, in a graph.
// In microseconds a call, with calls back to back; in brackets the bus bandwidth in GB/s, 2 (n - 1) / n times bytes
// over time, which NVLink bounds.
#include <cuda_runtime_api.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/cuda/nccl_group.h"
#include "comm/cuda/peer_all_reduce.h"
#include "comm/nccl.h"
#include "comm/shm.h"
#include "core/cuda/objects.h"
#include "kernels/cuda/launch.h"

namespace minisgl {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 30;
constexpr std::int64_t kLargestPeer = 64 << 20;
constexpr std::int64_t kLargestOneShot = 2 << 20;
constexpr std::int64_t kLargestFused = 512 << 10;
constexpr std::int64_t kCols = 4096;

using Body = std::function<void(cudaStream_t)>;

class Timer {
 public:
  explicit Timer(Communicator& host) : host_(host) {}

  // Microseconds of one call; the best of three rounds.
  double as_launched(const Body& body, int num_calls) {
    return best([&] {
             for (int i = 0; i < num_calls; ++i) body(stream_.get());
           }) /
           num_calls;
  }

  double in_a_graph(const Body& body, int num_calls) {
    const int calls_a_graph = std::min(num_calls, 20);
    MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls_a_graph; ++i) body(stream_.get());
    const CudaGraphExec recorded = end_capture(stream_.get());
    const int num_replays = std::max(1, num_calls / calls_a_graph);
    return best([&] {
             for (int i = 0; i < num_replays; ++i) MINISGL_CUDA_CHECK(cudaGraphLaunch(recorded.get(), stream_.get()));
           }) /
           (num_replays * calls_a_graph);
  }

 private:
  double best(const std::function<void()>& round) {
    double best = 1e30;
    for (int i = 0; i < 4; ++i) {  // the first one warms up
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
      host_.barrier(0);
      MINISGL_CUDA_CHECK(cudaEventRecord(begin_.get(), stream_.get()));
      round();
      MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
      float milliseconds = 0;
      MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()));
      if (i > 0) best = std::min(best, static_cast<double>(milliseconds) * 1000);
    }
    return best;
  }

  Communicator& host_;
  CudaStream stream_ = make_stream();
  CudaEvent begin_ = make_timed_event(), end_ = make_timed_event();
};

class Table {
 public:
  Table(Communicator& host, int device) : host_(host), timer_(host) {
    NcclUniqueId id{};
    if (host.rank() == 0) id = make_nccl_unique_id("");
    host.broadcast(id.data(), id.size(), 0, 0);
    const std::chrono::milliseconds timeout(60'000);
    nccl_ = std::make_unique<NcclGroup>(NcclLibrary::load(""), id, host.rank(), host.size(), timeout);
    symmetric_ = std::make_unique<NcclBuffer>(*nccl_, static_cast<std::size_t>(kLargestPeer));
    std::string reason;
    peers_ = PeerAllReduce::make(host, device, kLargestOneShot, kLargestPeer, timeout, reason);
    data_ = allocate(static_cast<std::size_t>(kLargest));
    residual_ = allocate(static_cast<std::size_t>(kLargestFused));
    weight_ = allocate(static_cast<std::size_t>(kLargestFused) * 2);
    if (host.rank() == 0)
      std::printf("%d ranks, NCCL %s, symmetric memory: %s, peer memory: %s\n%10s%40s%40s%40s%40s%12s%10s\n",
                  host.size(), nccl_->library().version_text().c_str(), symmetric_->is_symmetric() ? "yes" : "no",
                  peers_ ? "yes" : reason.c_str(), "bytes", "NCCL, graph", "symmetric, graph", "one-shot, graph",
                  "two-shot, graph", "NCCL+norm", "fused");
  }

  void print_row(std::int64_t bytes) {
    const int num_calls = bytes <= (1 << 20) ? 200 : bytes <= (64 << 20) ? 20 : 5;
    std::string line;
    const auto add = [&](double microseconds) {
      char text[64];
      const double bus = 2.0 * (host_.size() - 1) / host_.size() * static_cast<double>(bytes) / microseconds / 1e3;
      std::snprintf(text, sizeof(text), "%10.1f [%6.1f]", microseconds, bus);
      line += text;
    };
    const auto both = [&](bool present, const Body& body) {
      if (present) {
        add(timer_.as_launched(body, num_calls));
        add(timer_.in_a_graph(body, num_calls));
      }
      line.resize(line.size() + (present ? 2 : 40), ' ');
    };
    both(true, [&](cudaStream_t stream) { nccl_sum(data_.get(), bytes, stream); });
    both(symmetric_->is_symmetric() && bytes <= kLargestPeer,
         [&](cudaStream_t stream) { nccl_sum(symmetric_->data(), bytes, stream); });
    for (const PeerAlgorithm algorithm : {PeerAlgorithm::one_shot, PeerAlgorithm::two_shot})
      both(peers_ && peers_->fits(algorithm, bytes), [&](cudaStream_t stream) {
        peers_->all_reduce_sum(algorithm, data_.get(), bytes / 2, DType::bf16, stream);
      });
    if (peers_ && bytes <= kLargestFused) {
      const std::int64_t cols = std::min(kCols, bytes / 2), rows = bytes / 2 / cols;
      line += number(timer_.in_a_graph(
          [&](cudaStream_t stream) {
            nccl_sum(data_.get(), bytes, stream);
            cuda::add_rms_norm(residual_.get(), data_.get(), static_cast<const float*>(weight_.get()), 1e-5f, rows,
                               cols, data_.get(), stream);
          },
          num_calls));
      line += number(timer_.in_a_graph(
          [&](cudaStream_t stream) {
            const bool done =
                peers_->all_reduce_add_rms_norm({residual_.get(), data_.get(), static_cast<const float*>(weight_.get()),
                                                 1e-5f, data_.get(), rows, cols, DType::bf16},
                                                stream);
            MINISGL_CHECK(done, "the fused kernel doesn't take ", rows, " x ", cols);
          },
          num_calls));
    }
    if (host_.rank() == 0) std::printf("%10lld%s\n", static_cast<long long>(bytes), line.c_str());
    std::fflush(stdout);
  }

 private:
  using Memory = CudaHandle<void*, cudaFree>;

  static Memory allocate(std::size_t size) {
    void* data = nullptr;
    MINISGL_CUDA_CHECK(cudaMalloc(&data, size));
    MINISGL_CUDA_CHECK(cudaMemset(data, 0, size));
    return Memory(data);
  }

  static std::string number(double microseconds) {
    char text[32];
    std::snprintf(text, sizeof(text), "%10.1f", microseconds);
    return text;
  }

  void nccl_sum(void* data, std::int64_t bytes, cudaStream_t stream) {
    nccl_->call("ncclAllReduce", [&](const NcclLibrary& nccl, ncclComm_t comm) {
      return nccl.all_reduce(data, data, static_cast<std::size_t>(bytes / 2), ncclBfloat16, ncclSum, comm, stream);
    });
  }

  Communicator& host_;
  Timer timer_;
  std::unique_ptr<NcclGroup> nccl_;
  std::unique_ptr<NcclBuffer> symmetric_;
  std::unique_ptr<PeerAllReduce> peers_;
  Memory data_, residual_, weight_;
};

int rank_main(const std::string& group, int rank, int size) {
  const int device = rank % num_gpus();
  MINISGL_CUDA_CHECK(cudaSetDevice(device));
  const auto host = make_shm_communicator({group, rank, size, std::chrono::milliseconds(120'000)});
  Table table(*host, device);
  const bool share_a_gpu = num_gpus() < size;  // every wait is a time slice of the other process: no figures, a check
  for (std::int64_t bytes = 1 << 10; bytes <= (share_a_gpu ? 64 << 10 : kLargest); bytes *= 4) table.print_row(bytes);
  host->barrier(0);
  return 0;
}

}  // namespace
}  // namespace minisgl

int main(int argc, char** argv) {
  setenv("NCCL_NVLS_ENABLE", "0", 1);  // no NVLink multicast
  if (argc == 4) return minisgl::rank_main(argv[1], std::atoi(argv[2]), std::atoi(argv[3]));
  const int num_gpus = minisgl::num_gpus();
  const int size = argc > 1 ? std::atoi(argv[1]) : num_gpus;
  if (num_gpus == 0 || size < 2) {
    std::fprintf(stderr, "usage: comm_bench_gpu [ranks]: at least 2, and at least one GPU; there are %d GPUs\n",
                 num_gpus);
    return 2;
  }
  const std::string group = "bench-" + std::to_string(getpid());
  for (int rank = 0; rank < size; ++rank) {
    if (fork() != 0) continue;
    if (size > num_gpus) {
      setenv("NCCL_HOSTID", (group + std::to_string(rank)).c_str(), 1);
      setenv("NCCL_SOCKET_IFNAME", "lo", 1);
    }
    execl("/proc/self/exe", "comm_bench_gpu", group.c_str(), std::to_string(rank).c_str(), std::to_string(size).c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  int failures = 0, status = 0;
  while (wait(&status) > 0) failures += status != 0;
  return failures > 0;
}
