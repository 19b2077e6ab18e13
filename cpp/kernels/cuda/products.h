// The products of linear layers on one GPU: kernels of our own for few rows and for some tens, cuBLASLt for many. Where
// the number of rows may change no bit of a row, the kernel for some tens takes all, up to kMostSlimRows at a time: it
// adds up a row's sums, and what its norm is made of, in one order for any number of rows.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "gemm/cuda/cublaslt.h"
#include "gemm/cuda/launch.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/weights.h"
#include "kernels/linear_input.h"

namespace minisgl::cuda {

class Products {
 public:
  // Choices for `gpu_name` are kept in `cache_folder`; empty: nowhere. The pool's progress counts what is measured.
  // Everything is queued on `stream`. deterministic: the number of rows changes no bit of a row, and nothing is
  // measured; inputs are multiples of 8 then.
  Products(const std::string& gpu_name, const std::string& cache_folder, ThreadPool& pool, bool deterministic,
           cudaStream_t stream);
  // Called for every layer that is made.
  void expect(const DeviceLinear& weights);
  // What reserve() takes for the layers that were made so far, beside a step's activations.
  std::size_t scratch_bytes(std::int64_t rows) const;
  // Room for products of so many rows: needed before steps are recorded.
  void reserve(std::int64_t rows);

  // y = x · Wᵀ, in y's format.
  void write(const DeviceLinear& weights, const LinearInput& x, Tensor y);
  // y = silu(gate) * up of the two halves of x · Wᵀ, which `scratch` has room for, and which y may be left to be.
  LinearInput write_gated(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y);
  // y += x · Wᵀ, which `scratch` has room for. The norm of x must not be left to it.
  void add(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y);
  // The same. Returns the norm of y, a plain RMS norm, which `normed` has room for.
  LinearInput add_norm(const DeviceLinear& weights, const LinearInput& x, Tensor scratch, Tensor y, const Norm& norm,
                       Tensor normed);
  // Heads of x · Wᵀ, their queries in y. False where nothing does both at once.
  bool write_heads(const DeviceLinear& weights, const LinearInput& x, Tensor y, const SlimHeads& heads);
  // Whether products of such rows take a norm on their way.
  static bool takes_norms(std::int64_t rows, std::int64_t cols);
  // The rows that x stands for, where it is a norm that was left undone.
  Tensor plain_rows(LinearInput& x);

 private:
  // The product by the kernels for few rows, which take a norm that is still to be done on their way. False where they
  // don't take the shape.
  bool few_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SkinnyOutput output);
  // Whether the kernel for some tens of rows takes so many.
  bool takes_some_rows(WeightFormat format, std::int64_t rows, std::int64_t inputs) const;
  std::size_t square_bytes(std::int64_t rows) const;
  // By that kernel: a norm is divided by, where the product before prepared it. `args` says what becomes of the sums.
  bool some_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, SlimArgs args);
  // y (+)= x · Wᵀ for any shape. `scratch` has room for y; y itself where nothing is added.
  void many_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch, bool added);
  // The same of weights in e4m3, for rows of x in e4m3. False for other weights.
  bool many_byte_rows(const DeviceLinear& weights, const LinearInput& x, Tensor y, std::byte* scratch,
                      SkinnyOutput output);
  // Whether cuBLASLt computes it.
  bool takes_most_byte_rows(const DeviceLinear& weights, std::int64_t rows) const;
  // Weights as the kernels for more than a few rows read them: quantised ones become bf16, until the next are asked
  // for.
  DeviceWeights wide_weights(const DeviceLinear& weights);
  // The rows themselves: a norm that was left undone is done.
  Tensor written_rows(const LinearInput& x);

  bool deterministic_;
  DeviceBuffer squares_;     // [slim_parts(kMostPrepared), rows]: of the norm that was prepared last
  WriteCount prepared_ = 0;  // norms, and what ended them
  DenseGemm dense_;
  std::int64_t most_byte_inputs_ = 0;  // of the layers in e4m3
  DeviceBuffer bytes_, byte_scales_;   // rows of x in e4m3, and their scales
  std::int64_t most_wide_ = 0;         // elements of a layer that is quantised
  DeviceBuffer wide_;                  // [most_wide_] bf16
  cudaStream_t stream_;
};

}  // namespace minisgl::cuda
