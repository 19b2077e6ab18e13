// How many blocks may run at once.
#pragma once

#include <cuda_runtime.h>

#include "core/cuda/runtime.h"

namespace minisgl {

// The processors of the current device; all GPUs of a process are taken to be of one kind.
inline int num_processors() {
  static const int count = [] {
    int device = 0, processors = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    return processors;
  }();
  return count;
}

}  // namespace minisgl
