// Allocation, and uploads through pinned memory.
#include "kernels/cuda/memory.h"

#include <algorithm>
#include <cstring>

namespace minisgl::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{32} << 20;
constexpr std::size_t kCopyBytes = std::size_t{1} << 20;  // bytes of one task

}  // namespace

DeviceBuffer allocate_on_device(std::size_t bytes, const char* advice) {
  if (bytes == 0) return {};
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is dealt with
    std::size_t free = 0, total = 0;
    MINISGL_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    throw InputError(concat("the GPU has no room for ", bytes >> 20, " MiB more: ", free >> 20, " of ", total >> 20,
                            " MiB are free; ", advice));
  }
  MINISGL_CUDA_CHECK(error);
  return {std::shared_ptr<std::byte>(static_cast<std::byte*>(data), [](std::byte* p) { cudaFree(p); }), bytes};
}

PinnedMemory allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  MINISGL_CUDA_CHECK(cudaMallocHost(&data, bytes));
  return PinnedMemory(data);
}

void Uploader::upload(std::span<const std::byte> from, std::byte* to) {
  while (!from.empty()) {
    if (!staging_[next_]) {
      staging_[next_] = allocate_pinned(kStagingBytes);
      sent_[next_] = make_event();
    }
    MINISGL_CUDA_CHECK(cudaEventSynchronize(sent_[next_].get()));
    const std::size_t bytes = std::min(from.size(), kStagingBytes);
    auto* staging = static_cast<std::byte*>(staging_[next_].get());
    pool_.parallel_for(static_cast<std::int64_t>((bytes + kCopyBytes - 1) / kCopyBytes), [&](std::int64_t task, int) {
      const std::size_t first = static_cast<std::size_t>(task) * kCopyBytes;
      std::memcpy(staging + first, from.data() + first, std::min(kCopyBytes, bytes - first));
    });
    MINISGL_CUDA_CHECK(cudaMemcpyAsync(to, staging, bytes, cudaMemcpyHostToDevice, stream_));
    MINISGL_CUDA_CHECK(cudaEventRecord(sent_[next_].get(), stream_));
    from = from.subspan(bytes);
    to += bytes;
    next_ ^= 1;
  }
}

}  // namespace minisgl::cuda
