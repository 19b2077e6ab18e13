// Products of bf16 tensors on a GPU, microseconds per call in a recorded graph of 24, beside the floor: the bytes of
// the weights over the read bandwidth measured here.
//
//   gemm_bench_gpu [outputs inputs [rows ...]]
//
// engine: the kernel of few rows with weights that nobody writes. slim: those of some tens, to 192. tensor1, tensor2:
// the same for a user's tensors, with one and two blocks per processor; deep: with one of twice the ring; behind each
// without the first weights prefetched to the second-level cache. favoured: cuBLASLt's own first choice. cublaslt: the
// fastest of what it proposes, timed one by one. chosen: what GpuProducts runs. Weights are taken in turn from several
// copies, so that none is cached, and then again from one, as a loop over one layer has them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda/objects.h"
#include "gemm/cuda/cublaslt.h"
#include "gemm/cuda/launch.h"
#include "gemm/cuda/tensor_launch.h"
#include "gemm/tensor_product.h"
#include "kernels/cuda/backend.h"

namespace {

using namespace minisgl;

constexpr int kCalls = 24, kReplays = 15;
constexpr std::int64_t kMostRows = 8192;

using Memory = CudaHandle<void*, cudaFree>;
Memory allocate(std::int64_t bytes) {
  void* memory = nullptr;
  MINISGL_CUDA_CHECK(cudaMalloc(&memory, static_cast<std::size_t>(bytes)));
  return Memory(memory);
}

class Bench {
 public:
  Bench(std::int64_t outputs, std::int64_t inputs, double bandwidth)
      : outputs_(outputs), inputs_(inputs), bandwidth_(bandwidth) {
    const std::int64_t copies = std::clamp<std::int64_t>((std::int64_t{320} << 20) / (outputs * inputs * 2), 2, 24);
    for (std::int64_t i = 0; i < copies; ++i) weights_.push_back(random(outputs * inputs));
    x_ = random(kMostRows * inputs);
    y_ = allocate(kMostRows * outputs * 2);
  }

  void run(const std::vector<std::int64_t>& all_rows, bool in_turn) {
    std::printf("%lld x %lld, %s\n", static_cast<long long>(outputs_), static_cast<long long>(inputs_),
                in_turn ? "weights in turn" : "the same weights");
    std::printf("%5s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n", "rows", "floor", "engine", "slim", "tensor1",
                "no ahead", "tensor2", "no ahead", "deep", "no ahead", "favoured", "cublaslt", "chosen");
    for (const std::int64_t rows : all_rows) {
      cuda::DenseGemm unmeasured("GPU", "", pool_);
      cuda::DenseGemm dense("GPU", "", pool_);  // which chooses for these rows, not for those before
      const auto products = make_gpu_products(0);
      std::printf("%5lld %8.2f", static_cast<long long>(rows),
                  static_cast<double>(outputs_ * inputs_ * 2) / bandwidth_ * 1e6);
      const auto show = [&](bool possible, const std::function<void(const TensorProduct&)>& queue,
                            bool measures = true) {
        if (possible) {
          std::printf(" %8.2f", microseconds(rows, in_turn, queue, measures));
        } else {
          std::printf(" %8s", "-");
        }
      };
      const bool few = rows <= cuda::most_skinny_rows(cuda::WeightFormat::bf16);
      show(few, [&](const TensorProduct& p) {
        cuda::skinny_gemm({.weights = {.data = p.weights},
                           .bias = nullptr,
                           .x = p.x,
                           .norm = nullptr,
                           .eps = 0,
                           .y = p.y,
                           .output = cuda::SkinnyOutput::plain,
                           .rows = p.rows,
                           .inputs = p.inputs,
                           .outputs = p.outputs},
                          stream_.get());
      });
      show(rows <= cuda::kMostManyRows && cuda::has_slim_gemm(), [&](const TensorProduct& p) {
        const cuda::SlimArgs args{.weights = {.data = p.weights},
                                  .x = p.x,
                                  .y = p.y,
                                  .rows = p.rows,
                                  .inputs = p.inputs,
                                  .outputs = p.outputs};
        cuda::slim_gemm(args, cuda::slim_tuning(args), stream_.get());
      });
      for (const auto& [blocks, deep] : {std::pair(1, false), std::pair(2, false), std::pair(1, true)}) {
        for (const bool prefetches : {true, false}) {
          const cuda::SkinnyTuning tuning{blocks, deep, prefetches};
          show(few, [&](const TensorProduct& p) { cuda::skinny_tensor_gemm(p, tuning, stream_.get()); });
        }
      }
      for (cuda::DenseGemm* by : {&unmeasured, &dense}) {
        show(
            true,
            [&](const TensorProduct& p) {
              by->run({.weights = p.weights,
                       .x = p.x,
                       .y = p.y,
                       .scratch = p.y,
                       .y_is_f32 = false,
                       .added = false,
                       .rows = p.rows,
                       .inputs = p.inputs,
                       .outputs = p.outputs},
                      stream_.get());
            },
            by == &dense);
      }
      show(true, [&](const TensorProduct& p) { products->run(p, reinterpret_cast<std::uintptr_t>(stream_.get())); });
      std::printf("\n");
      std::fflush(stdout);
    }
  }

 private:
  Memory random(std::int64_t count) {
    Memory memory = allocate(count * 2);
    cuda::fill_random_bf16(memory.get(), count, 0.05f, 1, nullptr);
    MINISGL_CUDA_CHECK(cudaDeviceSynchronize());
    return memory;
  }

  // The median of the replays. Where it `measures`, a call outside of the graph chooses first.
  double microseconds(std::int64_t rows, bool in_turn, const std::function<void(const TensorProduct&)>& queue,
                      bool measures) {
    const auto product = [&](std::size_t turn) {
      return TensorProduct{weights_[in_turn ? turn % weights_.size() : 0].get(),
                           nullptr,
                           x_.get(),
                           y_.get(),
                           DType::bf16,
                           rows,
                           outputs_,
                           inputs_};
    };
    if (measures) queue(product(0));
    MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    for (std::size_t i = 0; i < kCalls; ++i) queue(product(i));
    const CudaGraphExec recorded = end_capture(stream_.get());
    std::vector<float> times;
    for (int replay = 0; replay < kReplays + 2; ++replay) {
      MINISGL_CUDA_CHECK(cudaEventRecord(start_.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaGraphLaunch(recorded.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaEventRecord(end_.get(), stream_.get()));
      MINISGL_CUDA_CHECK(cudaEventSynchronize(end_.get()));
      float ms = 0;
      MINISGL_CUDA_CHECK(cudaEventElapsedTime(&ms, start_.get(), end_.get()));
      if (replay >= 2) times.push_back(ms);
    }
    std::ranges::sort(times);
    return double{times[times.size() / 2]} * 1e3 / kCalls;
  }

  std::int64_t outputs_, inputs_;
  double bandwidth_;
  ThreadPool pool_{1};
  CudaStream stream_ = make_stream();
  CudaEvent start_ = make_timed_event(), end_ = make_timed_event();
  std::vector<Memory> weights_;
  Memory x_, y_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t outputs = argc >= 3 ? std::atoll(argv[1]) : 4096, inputs = argc >= 3 ? std::atoll(argv[2]) : 14336;
  std::vector<std::int64_t> rows;
  for (int i = 3; i < argc; ++i) rows.push_back(std::atoll(argv[i]));
  if (rows.empty()) rows = {1, 2, 8, 9, 16, 17, 32, 64, 128, 129, 192, 256};
  const double bandwidth = make_cuda_device(0, 1)->measure_read_bandwidth();
  std::printf("reads: %.2f TB/s\n", bandwidth / 1e12);
  Bench bench(outputs, inputs, bandwidth);
  bench.run(rows, true);
  bench.run(rows, false);
}
