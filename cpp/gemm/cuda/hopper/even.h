// The gated products of slim_gemm() that are cut more evenly.
#pragma once

#include "gemm/cuda/launch.h"

namespace minisgl::cuda::hopper {

constexpr int kEvenWeightRows = 224;  // of a block

// `gated`, up to kMostManyRows; else as slim_gemm().
void even_gemm(const SlimArgs& args, cudaStream_t stream);

}  // namespace minisgl::cuda::hopper
