// A device's memory and the way to it from the host.
#pragma once

#include <cstddef>
#include <span>

#include "core/cuda/objects.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace minisgl::cuda {

// Not zeroed. Throws InputError where the GPU has no room; it ends with what to do then.
DeviceBuffer allocate_on_device(std::size_t bytes,
                                const char* advice = "lower --memory-fraction, --num-pages or --max-batch-tokens");
PinnedMemory allocate_pinned(std::size_t bytes);

// Carries pageable memory (mapped files) to the device: threads copy it into one of two pinned buffers while the other
// is on its way.
class Uploader {
 public:
  // `pool` and `stream` outlive it.
  Uploader(ThreadPool& pool, cudaStream_t stream) : pool_(pool), stream_(stream) {}
  // Returns when `from` isn't needed any more; the stream has the rest.
  void upload(std::span<const std::byte> from, std::byte* to);

 private:
  ThreadPool& pool_;
  cudaStream_t stream_;
  PinnedMemory staging_[2];
  CudaEvent sent_[2];
  int next_ = 0;
};

}  // namespace minisgl::cuda
