// Puts a step together in pinned memory and takes it to the device in one copy.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/step_data.h"
#include "kernels/ops.h"

namespace minisgl::cuda {

class StepBlock {
 public:
  // Bytes of the largest step within `limits`.
  static std::size_t bytes_for(const StepLimits& limits);
  // Room for `bytes`; what the device holds is lost.
  void reserve(std::size_t bytes);
  std::size_t size() const { return device_.size(); }
  cudaEvent_t sent() const { return sent_.get(); }

  // Queues the copy of a batch filled up to `padded_sequences` sequences of no row, one row and one query each, where
  // that is more than it has; sent() follows it on `stream`. Slots of the sampled tokens are found by
  // slot_of(query.seen).
  const StepData& upload(const StepBatch& batch, std::span<const LogitQuery> queries, std::int64_t padded_sequences,
                         const std::function<std::int32_t(const SeenTokens*)>& slot_of, cudaStream_t stream);

 private:
  DeviceBuffer device_;
  PinnedMemory staging_;
  CudaEvent sent_;
  StepData data_{};
};

}  // namespace minisgl::cuda
