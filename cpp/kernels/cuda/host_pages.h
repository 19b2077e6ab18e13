// Pages of a cache in pinned memory, and the stream that carries them.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/cuda/objects.h"
#include "kernels/host_pages.h"

namespace minisgl::cuda {

// Pinning takes about a second for 10 GB, so a thread does it after start(), in chunks; a page is ready with its chunk.
// A page lies in one piece on the host; on the device its parts are as far apart as planes, so a copy engine takes all
// parts of one size at once. Each page is read and written at PCIe's speed, and takes a call or two of the host.
class PinnedPages final : public HostPages {
 public:
  // Steps are queued on `step_stream`, which outlives the pages. Throws InputError where the host has no memory for
  // them, or CUDA can't pin the first chunk.
  PinnedPages(int device_index, HostPagesOptions options, cudaStream_t step_stream);
  ~PinnedPages() override;  // waits for the copies
  PinnedPages(const PinnedPages&) = delete;

  double measure_page_seconds() override;
  void start() override;
  std::int64_t num_ready() const override { return num_ready_.load(std::memory_order_acquire); }
  void copy_out(std::int32_t device_page, std::int32_t host_page) override {
    copy(device_page, host_page, cudaMemcpyDeviceToHost);
  }
  void copy_in(std::int32_t host_page, std::int32_t device_page) override {
    copy(device_page, host_page, cudaMemcpyHostToDevice);
  }
  void end_copies(std::uint64_t number) override;
  std::uint64_t num_done() const override { return num_done_.load(std::memory_order_acquire); }
  void hold_steps(std::uint64_t number) override;

 private:
  // Parts of a page of one size, at the same distance from each other.
  struct Strip {
    std::byte* data;            // of page 0's first part
    std::size_t bytes, stride;  // of a part; from one to the next
    std::size_t count;
    std::size_t offset;  // in the host's page
  };
  // What the end of some copies has to say.
  struct End {
    PinnedPages* pages;
    std::uint64_t number;
  };

  void add_plane(const PagePlane& plane, std::size_t max_stride);
  void map();
  cudaError_t pin_next();
  void copy(std::int32_t device_page, std::int32_t host_page, cudaMemcpyKind kind);
  std::byte* host_page(std::int64_t page) const {
    return memory_ + page / pages_per_chunk_ * chunk_bytes_ + page % pages_per_chunk_ * page_bytes_;
  }

  int device_index_;
  HostPagesOptions options_;
  cudaStream_t step_stream_;
  CudaStream stream_;
  std::vector<Strip> strips_;
  std::int64_t page_bytes_ = 0, pages_per_chunk_ = 0, chunk_bytes_ = 0, num_chunks_ = 0;
  std::byte* memory_ = nullptr;  // [num_chunks, chunk_bytes], mapped
  std::int64_t num_pinned_ = 0;  // chunks; the pinning thread's once it runs
  std::atomic<std::int64_t> num_ready_ = 0;
  std::atomic<std::uint64_t> num_done_ = 0;
  std::atomic<bool> stopping_ = false;
  std::deque<std::pair<std::uint64_t, CudaEvent>> ends_;  // of copies that steps don't wait for yet
  std::deque<End> said_;                                  // by callbacks that may still run
  std::thread pinning_;
};

}  // namespace minisgl::cuda
