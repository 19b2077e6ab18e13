// Rows of a quantised embedding table.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "gemm/cuda/weight_format.h"
#include "kernels/cuda/step_data.h"

namespace minisgl::cuda {

// As embed() (launch.h), of a table in a quantised format.
void embed_units(const StepData& step, const DeviceWeights& table, std::int64_t first_token, std::int64_t num_tokens,
                 std::int64_t cols, float scale, void* y, cudaStream_t stream);

}  // namespace minisgl::cuda
