// The products of linear layers on one GPU: kernels of our own for few rows, cuBLASLt for many.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "gemm/cuda/cublaslt.h"
#include "gemm/cuda/launch.h"
#include "kernels/cuda/weights.h"
#include "kernels/linear_input.h"

namespace minisgl::cuda {

class Products {
 public:
  // Choices for `gpu_name` are kept in `cache_folder`; empty: nowhere. The pool's progress counts what is measured.
  // Everything is queued on `stream`.
  Products(const std::string& gpu_name, const std::string& cache_folder, ThreadPool& pool, cudaStream_t stream)
      : dense_(gpu_name, cache_folder, pool), stream_(stream) {}

  // y = x · Wᵀ, in y's format.
  void write(const DeviceLinear& weights, const LinearInput& x, Tensor y);
  // y = silu(gate) * up of the two halves of x · Wᵀ, which `scratch` has room for.
  void write_gated(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y);
  // y += x · Wᵀ, which `scratch` has room for. The norm of x must not be left to it.
  void add(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y);

  // Whether products of these rows may be left to take their norm.
  static bool take_norm(std::int64_t rows, std::int64_t cols) { return skinny_gemm_fits(rows, cols); }

 private:
  // The product by the kernels for few rows, which take a norm that is still to be done on their way. False where they
  // don't take the shape.
  bool few_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SkinnyOutput output);
  // y (+)= x · Wᵀ for any shape. `scratch` has room for y; y itself where nothing is added.
  void many_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch, bool added);

  DenseGemm dense_;
  cudaStream_t stream_;
};

}  // namespace minisgl::cuda
