// Workspaces of a library's kernels: one per stream, and one per stream of each graph, so that what runs at the same
// time shares none.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <memory>

#include "core/cuda/runtime.h"

namespace minisgl::cuda {

// A capture that a stream is part of; `id` is 0 outside of one.
struct Capture {
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
};
Capture capture_of(cudaStream_t stream);

// While it lives, this thread may allocate and wait for events although streams are being captured, here or elsewhere.
class RelaxedCapture {
 public:
  RelaxedCapture() { MINISGL_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_)); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

using CudaMemory = CudaHandle<void*, cudaFree>;
// Device memory, or null where there is not enough; also while streams are being captured.
CudaMemory try_allocate(std::size_t bytes);

// On the current device. One thread at a time calls of(); graphs may end on any.
class Workspaces {
 public:
  explicit Workspaces(std::size_t bytes);
  // Frees all but what graphs still hold, which stays allocated to the end of the process.
  ~Workspaces();
  Workspaces(const Workspaces&) = delete;
  Workspaces& operator=(const Workspaces&) = delete;

  // The workspace of the work that is queued on `stream`, or captured from it: its own until the graph and what was
  // instantiated of it are destroyed. Null where there is no memory.
  void* of(cudaStream_t stream, const Capture& capture);

 private:
  struct Lending;
  void* lend(cudaStream_t stream, const Capture& capture);

  std::size_t bytes_;
  std::map<unsigned long long, CudaMemory> of_streams_;  // by the stream's number, never used twice
  std::shared_ptr<Lending> lending_;                     // to graphs
};

}  // namespace minisgl::cuda
