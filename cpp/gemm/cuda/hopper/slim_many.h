// The products of slim_gemm() with more rows than a block takes.
#pragma once

#include "gemm/cuda/launch.h"

namespace minisgl::cuda::hopper {

// Blocks of 128 weight rows; else as slim_gemm().
void slim_gemm_of_many(const SlimArgs& args, const SlimTuning& tuning, cudaStream_t stream);

}  // namespace minisgl::cuda::hopper
