// NCCL's communicator: with a time limit for its start and its end, given up from any thread.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>

#include "comm/cuda/nccl_library.h"
#include "comm/nccl.h"

namespace minisgl {

// One rank's membership. The calling thread's device is the group's in every call but abort().
class NcclGroup {
 public:
  // Waits until all ranks have come; throws RankFailure after the time limit.
  NcclGroup(const NcclLibrary& library, const NcclUniqueId& id, int rank, int size, std::chrono::milliseconds timeout);
  // Waits for the other ranks' destructors, if nothing has failed.
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  const NcclLibrary& library() const { return library_; }

  // Makes the call. Throws RankFailure for a remote error, InputError for any other.
  template <typename Function>
  void call(const char* name, Function function) {
    const std::lock_guard lock(mutex_);
    check(comm_ ? function(library_, comm_) : ncclRemoteError, name);
  }

  // An error that NCCL met after a call had returned, in NCCL's words; "" where there is none.
  std::string asynchronous_error();
  // Ends, from any thread, what is queued on the device. Later calls fail.
  void abort();
  // How long the destructor waits for the other ranks.
  void set_time_limit(std::chrono::milliseconds limit) { timeout_ = limit; }
  bool is_aborted() const { return aborted_.load(std::memory_order_relaxed); }

 private:
  void check(ncclResult_t result, const char* name) const;

  NcclLibrary library_;
  std::chrono::milliseconds timeout_;
  std::atomic<bool> aborted_{false};
  std::timed_mutex mutex_;  // guards comm_
  ncclComm_t comm_ = nullptr;
};

// Device memory allocated by NCCL and registered with one group, which outlives it: as symmetric memory where this NCCL
// has it, else as a plain buffer. Made by all ranks together.
class NcclBuffer {
 public:
  NcclBuffer(NcclGroup& group, std::size_t size);  // 0: no buffer
  ~NcclBuffer();
  NcclBuffer(const NcclBuffer&) = delete;
  NcclBuffer& operator=(const NcclBuffer&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool is_symmetric() const { return window_ != nullptr; }

 private:
  NcclGroup& group_;
  std::size_t size_;
  void* data_ = nullptr;
  void* window_ = nullptr;
  void* registration_ = nullptr;
};

}  // namespace minisgl
