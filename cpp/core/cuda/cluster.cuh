// The blocks of a thread block cluster (compute capability 9.0), which may use each other's shared memory. On older
// GPUs a cluster is a single block.
#pragma once

#include <cuda_runtime.h>

namespace minisgl {

// A barrier for all threads of the cluster; what they wrote to shared memory is visible after it.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;\n" ::: "memory");
#else
  __syncthreads();
#endif
}

// Where `variable` of shared memory lies in block `rank` of the cluster.
template <typename T>
__device__ __forceinline__ T* in_block(T* variable, int rank) {
#if __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, %2;\n" : "=l"(there) : "l"(variable), "r"(rank));
  return there;
#else
  return variable;
#endif
}

}  // namespace minisgl
