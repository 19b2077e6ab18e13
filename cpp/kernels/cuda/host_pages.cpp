// Memory is mapped at once, and touched and pinned by chunks.
#include "kernels/cuda/host_pages.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/log.h"
#include "core/quiet_thread.h"

namespace minisgl::cuda {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{128} << 20;  // CUDA holds its locks while it pins one: a few ms
constexpr std::int64_t kAlignment = std::int64_t{2} << 20;     // of chunks, so that the kernel may use large pages
constexpr int kMeasured = 5;

std::int64_t round_up(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

PinnedPages::PinnedPages(int device_index, HostPagesOptions options, cudaStream_t step_stream)
    : device_index_(device_index), options_(std::move(options)), step_stream_(step_stream), stream_(make_stream()) {
  int max_stride = 0;
  MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&max_stride, cudaDevAttrMaxPitch, device_index));
  for (const PagePlane& plane : options_.planes) add_plane(plane, static_cast<std::size_t>(max_stride));
  pages_per_chunk_ = std::clamp<std::int64_t>(kChunkBytes / page_bytes_, 1, options_.num_pages);
  chunk_bytes_ = round_up(pages_per_chunk_ * page_bytes_);
  num_chunks_ = (options_.num_pages + pages_per_chunk_ - 1) / pages_per_chunk_;
  map();
  if (const cudaError_t error = pin_next(); error != cudaSuccess) {
    munmap(memory_, static_cast<std::size_t>(num_chunks_ * chunk_bytes_));
    throw InputError(concat("--kv-host-bytes ", options_.num_pages * page_bytes_, ": CUDA can't pin ",
                            chunk_bytes_ >> 20, " MiB of the host's memory (", cudaGetErrorString(error),
                            "); lower it, or leave it out"));
  }
}

PinnedPages::~PinnedPages() {
  stopping_ = true;
  if (pinning_.joinable()) pinning_.join();
  cudaSetDevice(device_index_);
  const cudaError_t error = cudaStreamSynchronize(stream_.get());  // no callback runs afterwards
  if (error != cudaSuccess) {
    log_line(LogLevel::warning, std::string("the host tier's last copies failed: ") + cudaGetErrorString(error));
  }
  for (std::int64_t chunk = 0; chunk < num_pinned_; ++chunk) cudaHostUnregister(memory_ + chunk * chunk_bytes_);
  munmap(memory_, static_cast<std::size_t>(num_chunks_ * chunk_bytes_));
}

// Joins the plane to the strip before it where it goes on in the same steps.
void PinnedPages::add_plane(const PagePlane& plane, std::size_t max_stride) {
  const auto bytes = static_cast<std::size_t>(plane.page_bytes);
  if (!strips_.empty()) {
    Strip& last = strips_.back();
    const std::byte* end = last.data + (last.count - 1) * last.stride;
    const auto stride = static_cast<std::size_t>(plane.data - end);
    const bool goes_on = last.count == 1 ? stride >= bytes && stride <= max_stride : stride == last.stride;
    if (plane.data > end && last.bytes == bytes && goes_on) {
      last.stride = stride;
      ++last.count;
      page_bytes_ += plane.page_bytes;
      return;
    }
  }
  strips_.push_back({.data = plane.data,
                     .bytes = bytes,
                     .stride = bytes,
                     .count = 1,
                     .offset = static_cast<std::size_t>(page_bytes_)});
  page_bytes_ += plane.page_bytes;
}

void PinnedPages::map() {
  const auto bytes = static_cast<std::size_t>(num_chunks_ * chunk_bytes_);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw InputError(concat("--kv-host-bytes ", options_.num_pages * page_bytes_, ": the host can't map ", bytes >> 20,
                            " MiB of memory (", std::strerror(errno), "); lower it, or leave it out"));
  }
  madvise(memory, bytes, MADV_HUGEPAGE);
  memory_ = static_cast<std::byte*>(memory);
}

// Touches the next chunk, outside of CUDA's locks, and pins it.
cudaError_t PinnedPages::pin_next() {
  std::byte* chunk = memory_ + num_pinned_ * chunk_bytes_;
  for (std::int64_t at = 0; at < chunk_bytes_ && !stopping_; at += 4096) chunk[at] = std::byte{0};
  const cudaError_t error = cudaHostRegister(chunk, static_cast<std::size_t>(chunk_bytes_), cudaHostRegisterPortable);
  if (error != cudaSuccess) {
    cudaGetLastError();  // it is dealt with
    return error;
  }
  ++num_pinned_;
  num_ready_.store(std::min(num_pinned_ * pages_per_chunk_, options_.num_pages), std::memory_order_release);
  return cudaSuccess;
}

void PinnedPages::start() {
  pinning_ = start_quiet_thread([this] {
    pthread_setname_np(pthread_self(), "minisgl-pin");
    cudaSetDevice(device_index_);
    while (num_pinned_ < num_chunks_ && !stopping_) {
      if (const cudaError_t error = pin_next(); error != cudaSuccess) {
        log_line(LogLevel::warning, concat("the host tier has ", num_ready(), " of ", options_.num_pages,
                                           " pages, as CUDA can't pin more of ", "the host's memory (",
                                           cudaGetErrorString(error), "); lower --kv-host-bytes"));
        return;
      }
      options_.on_change();
    }
  });
}

double PinnedPages::measure_page_seconds() {
  const auto count = static_cast<std::int32_t>(std::min(num_ready(), options_.num_device_pages));
  const CudaEvent begun = make_timed_event(), ended = make_timed_event();
  double best = std::numeric_limits<double>::infinity();
  MINISGL_CUDA_CHECK(cudaStreamSynchronize(step_stream_));
  for (int run = 0; run < kMeasured; ++run) {
    MINISGL_CUDA_CHECK(cudaEventRecord(begun.get(), stream_.get()));
    for (std::int32_t page = 0; page < count; ++page) copy_in(page, page);
    MINISGL_CUDA_CHECK(cudaEventRecord(ended.get(), stream_.get()));
    MINISGL_CUDA_CHECK(cudaStreamSynchronize(stream_.get()));
    float milliseconds = 0;
    MINISGL_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begun.get(), ended.get()));
    best = std::min(best, milliseconds * 1e-3 / count);
  }
  return best;
}

void PinnedPages::copy(std::int32_t device_page, std::int32_t host_page_id, cudaMemcpyKind kind) {
  MINISGL_CHECK(device_page >= 0 && device_page < options_.num_device_pages && host_page_id >= 0 &&
                    host_page_id < options_.num_pages,
                "page ", device_page, " of the device, ", host_page_id, " of the host");
  std::byte* host = host_page(host_page_id);
  for (const Strip& strip : strips_) {
    std::byte* device = strip.data + static_cast<std::size_t>(device_page) * strip.bytes;
    std::byte* at = host + strip.offset;
    if (kind == cudaMemcpyDeviceToHost) {
      MINISGL_CUDA_CHECK(
          cudaMemcpy2DAsync(at, strip.bytes, device, strip.stride, strip.bytes, strip.count, kind, stream_.get()));
    } else {
      MINISGL_CUDA_CHECK(
          cudaMemcpy2DAsync(device, strip.stride, at, strip.bytes, strip.bytes, strip.count, kind, stream_.get()));
    }
  }
}

void PinnedPages::end_copies(std::uint64_t number) {
  while (!said_.empty() && said_.front().number <= num_done()) said_.pop_front();
  ends_.emplace_back(number, make_event());
  MINISGL_CUDA_CHECK(cudaEventRecord(ends_.back().second.get(), stream_.get()));
  const auto say = [](void* argument) {
    const End& end = *static_cast<const End*>(argument);
    PinnedPages& pages = *end.pages;
    pages.num_done_.store(end.number, std::memory_order_release);
    pages.options_.on_change();
  };
  MINISGL_CUDA_CHECK(cudaLaunchHostFunc(stream_.get(), say, &said_.emplace_back(End{this, number})));
}

void PinnedPages::hold_steps(std::uint64_t number) {
  if (ends_.empty() || ends_.front().first > number) return;
  while (ends_.size() > 1 && ends_[1].first <= number) ends_.pop_front();
  MINISGL_CUDA_CHECK(cudaStreamWaitEvent(step_stream_, ends_.front().second.get()));
  ends_.pop_front();
}

}  // namespace minisgl::cuda
