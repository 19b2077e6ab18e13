// The driver's function that describes matrices to the copy engine of compute capability 9.0.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "core/cuda/runtime.h"

namespace minisgl::cuda::hopper {

// The driver is asked for its function: nothing is linked with it.
inline auto tensor_map_encoder() {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
    MINISGL_CUDA_CHECK(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status));
    MINISGL_CHECK(status == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return encode;
}

}  // namespace minisgl::cuda::hopper
