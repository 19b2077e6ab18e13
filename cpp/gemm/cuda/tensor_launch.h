// Entry points of the kernels for tensors that a user owns (gemm/tensor_product.h). All queue their work on `stream`.
#pragma once

#include <cuda_runtime.h>

#include "gemm/tensor_product.h"

namespace minisgl::cuda {

// What is the fastest depends on the shape.
struct SkinnyTuning {
  int blocks_per_processor = 1;  // or 2: fewer outputs per block, and x read by more blocks
  bool deep = false;             // twice the ring, so that a processor has room for one block only
  bool prefetches = true;        // the second-level cache reads the first weights while the kernel before ends
};
// The kernel of few rows, where it takes the product: bf16 or f16, inputs a multiple of 8, weights and x at multiples
// of 16 bytes.
bool skinny_tensor_gemm_fits(const TensorProduct& product);
void skinny_tensor_gemm(const TensorProduct& product, const SkinnyTuning& tuning, cudaStream_t stream);

// Any product, inputs of 0 among them, and slowly: where nothing else takes it.
void plain_tensor_gemm(const TensorProduct& product, cudaStream_t stream);

}  // namespace minisgl::cuda
