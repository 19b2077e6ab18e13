// The engine's products of many rows, through cuBLASLt.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/thread_pool.h"

namespace minisgl::cuda {

struct DenseArgs {
  const void* weights;  // bf16 [outputs, inputs], or e4m3 as x
  const void* x;        // bf16 [rows, inputs], or e4m3 where there are scales
  void* y;              // bf16 or f32 [rows, outputs]
  void* scratch;        // as large as y; measuring overwrites it. It may be y where nothing is added
  bool y_is_f32;
  bool added;                            // y += x · Wᵀ
  std::int64_t rows, inputs, outputs;    // of e4m3 inputs and outputs are multiples of 16
  const float* weight_scales = nullptr;  // [outputs]
  const float* x_scales = nullptr;       // [rows]
};

// The most rows that share a choice with `rows`: the multiple of 16 above them up to 64, then the power of two.
std::int64_t rows_of_choice(std::int64_t rows);

// y (+)= x · Wᵀ with f32 sums, on one device. Of the algorithms that cuBLASLt proposes for a shape the fastest is kept:
// they are timed at the shape's first use, with the weights out of the caches, unless a graph is being captured.
class DenseGemm {
 public:
  // Choices are kept in `cache_folder`, by GPU and cuBLASLt's version; empty: nowhere. Throws InputError where
  // libcublasLt can't be loaded. What is timed advances the progress of `pool`, which outlives it.
  DenseGemm(const std::string& gpu_name, const std::filesystem::path& cache_folder, ThreadPool& pool);
  ~DenseGemm();
  void run(const DenseArgs& args, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace minisgl::cuda
