// Launches kernels so that the next may start while the last drains (programmatic dependent launch, compute capability
// 9.0). Every kernel launched so calls wait_for_previous() before it touches what earlier kernels write or read, in
// every block: then all that came before is done.
#pragma once

#include <cuda_runtime.h>

#include "core/cuda/runtime.h"

namespace minisgl {

// Whether the current device can launch so; all GPUs of a process are taken to be of one generation.
inline bool has_dependent_launch() {
  static const bool answer = [] {
    int device = 0, major = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
  }();
  return answer;
}

// `cluster` neighbours along the grid's x form a cluster (one block each before compute capability 9.0).
template <typename... Parameters, typename... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int cluster, dim3 grid, int threads, std::size_t shared_bytes,
                     cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = !has_dependent_launch() ? 0 : cluster == 1 ? 1 : 2;
  MINISGL_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

template <typename... Parameters, typename... Arguments>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  launch_clusters(kernel, 1, grid, threads, shared_bytes, stream, arguments...);
}

#ifdef __CUDACC__
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// The next kernel's blocks may be placed from now on; they wait for this one's end themselves.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
#endif

}  // namespace minisgl
