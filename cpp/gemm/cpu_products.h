// The products of tensor_product.h on the CPU: the same description, through the dispatch of gemm.h. Its kernels read
// packed weights, so whoever owns the tensor keeps the packed form of it and knows when it is out of date.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "gemm/gemm.h"
#include "gemm/packed_matrix.h"
#include "gemm/tensor_product.h"

namespace minisgl {

// Threads and scratch that all products share. Any thread may call; calls take turns.
class CpuProducts {
 public:
  // The product's weights as the kernels read them: as many bytes again, rounded up to 8 outputs.
  std::shared_ptr<const PackedMatrix> pack(const TensorProduct& product, int num_threads);

  // Sums are f32, the bias is added to the sum, and the result is rounded once. `weights` is what pack() made of
  // product.weights, which this doesn't read. Returns when y is written.
  void run(const PackedMatrix& weights, const TensorProduct& product, int num_threads);

  // Around a fork, which waits for the product that runs: else the child, which has no thread to end it, would wait.
  void before_fork() { mutex_.lock(); }
  void after_fork() { mutex_.unlock(); }

 private:
  // Pools stay for the process's life: their number is the number of sizes that were asked for, and a forked child,
  // which has none of their threads, does all tasks itself.
  ThreadPool& pool(int num_threads);
  const float* bias_as_f32(const TensorProduct& product);

  std::mutex mutex_;
  std::map<int, ThreadPool> pools_;
  GemmWorkspace workspace_;
  AlignedBuffer bias_;  // [outputs] f32, of a bias in f16 or bf16
};

}  // namespace minisgl
