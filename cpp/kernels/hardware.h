// What a device is, and its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/error.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "kernels/host_pages.h"

namespace minisgl {

class Hardware {
 public:
  virtual ~Hardware() = default;

  virtual std::string device_name() const = 0;  // for people
  virtual ThreadPool& pool() = 0;               // the host's threads
  virtual DType activation_dtype() const = 0;
  virtual DType kv_dtype_for(DType weight_dtype) const = 0;  // the cache's, where no flag chooses
  virtual bool supports_kv_dtype(DType dtype) const = 0;
  virtual bool has_own_memory() const = 0;              // memory of its own, so the cache may take what is left
  virtual std::int64_t usual_batch_tokens() const = 0;  // rows of a step that keep the device busy
  // Bytes that can be allocated for weights, cache and workspace.
  virtual std::int64_t available_memory() const = 0;

  // Bytes per second that are read from memory, here and now: the ceiling of everything that memory bounds.
  virtual double measure_read_bandwidth() = 0;
  virtual void synchronize() = 0;  // waits for everything queued

  // Zeroed. Throws std::bad_alloc.
  virtual DeviceBuffer allocate(std::size_t bytes) = 0;
  virtual void upload(std::span<const std::byte> from, std::byte* to) = 0;
  virtual void copy(const std::byte* from, std::size_t bytes, std::byte* to) = 0;
  virtual void download(const std::byte* from, std::span<std::byte> to) = 0;

  // Whether make_host_pages() can be called: the device has memory of its own, and copies beside its steps.
  virtual bool has_host_pages() const { return false; }
  // Throws InputError where the host has no memory for them.
  virtual std::unique_ptr<HostPages> make_host_pages(const HostPagesOptions&) {
    throw CheckError("the device has no pages on the host");
  }
};

}  // namespace minisgl
