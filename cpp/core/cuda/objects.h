// CUDA's streams, events and graphs, made.
#pragma once

#include "core/cuda/runtime.h"

namespace minisgl {

inline CudaStream make_stream() {
  cudaStream_t stream = nullptr;
  MINISGL_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return CudaStream(stream);
}

inline CudaEvent make_event() {  // without timing
  cudaEvent_t event = nullptr;
  MINISGL_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return CudaEvent(event);
}

inline CudaEvent make_timed_event() {  // for cudaEventElapsedTime
  cudaEvent_t event = nullptr;
  MINISGL_CUDA_CHECK(cudaEventCreate(&event));
  return CudaEvent(event);
}

// Ends the stream's capture: what was queued since it began, ready to be launched.
inline CudaGraphExec end_capture(cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  MINISGL_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  const CudaGraph owner(graph);
  cudaGraphExec_t recorded = nullptr;
  MINISGL_CUDA_CHECK(cudaGraphInstantiate(&recorded, graph, 0));
  return CudaGraphExec(recorded);
}

}  // namespace minisgl
