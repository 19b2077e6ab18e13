// CUDA's runtime, checked and owned. For files of the cuda/ folders only.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace minisgl {

inline void check_cuda(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  throw CheckError(concat(file, ":", line, ": ", call, " failed: ", cudaGetErrorString(error)));
}

// Owns a handle; what goes wrong while it is destroyed is logged.
template <typename Handle, cudaError_t (*destroy)(Handle)>
class CudaHandle {
 public:
  CudaHandle() = default;
  explicit CudaHandle(Handle handle) : handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ == nullptr) return;
    const cudaError_t error = destroy(handle_);
    if (error != cudaSuccess)
      log_line(LogLevel::warning, std::string("a CUDA object can't be freed: ") + cudaGetErrorString(error));
  }
  Handle get() const { return handle_; }
  Handle release() { return std::exchange(handle_, nullptr); }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  Handle handle_ = nullptr;
};

using CudaStream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = CudaHandle<cudaEvent_t, cudaEventDestroy>;
using CudaGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;
using PinnedMemory = CudaHandle<void*, cudaFreeHost>;

}  // namespace minisgl

#define MINISGL_CUDA_CHECK(call) ::minisgl::check_cuda((call), #call, __FILE__, __LINE__)
