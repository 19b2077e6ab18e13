// A stretch of the current GPU's memory, for tests.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "core/cuda/objects.h"

namespace minisgl {

class DeviceMemory {
 public:
  explicit DeviceMemory(const std::vector<std::byte>& content) : size_(content.size()) {
    void* data = nullptr;
    MINISGL_CUDA_CHECK(cudaMalloc(&data, size_ + 1));
    data_ = CudaHandle<void*, cudaFree>(data);
    set(content);
  }

  void set(const std::vector<std::byte>& content) {
    MINISGL_CUDA_CHECK(cudaMemcpy(data_.get(), content.data(), size_, cudaMemcpyHostToDevice));
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(nullptr));  // a copy of pageable memory may return before its end
  }
  std::vector<std::byte> get() const {
    std::vector<std::byte> content(size_);
    MINISGL_CUDA_CHECK(cudaMemcpy(content.data(), data_.get(), size_, cudaMemcpyDeviceToHost));
    return content;
  }
  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }

 private:
  std::size_t size_;
  CudaHandle<void*, cudaFree> data_;
};

// What `body` queues on the stream, as a graph.
template <typename Body>
CudaGraphExec record(const CudaStream& stream, Body body) {
  MINISGL_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  body();
  return end_capture(stream.get());
}

}  // namespace minisgl
