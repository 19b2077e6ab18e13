// Penalty counts in a GPU's memory (launch.h says what a count is).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>
#include <vector>

#include "core/cuda/runtime.h"
#include "core/error.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/memory.h"
#include "kernels/query.h"

namespace minisgl::cuda {

// Penalty counts of all sequences that need them.
struct SeenPool {
  DeviceBuffer counts;  // [slots, vocab_size]
  std::int64_t num_slots = 0, vocab_size = 0;
  std::vector<std::int32_t> free;

  // No slot may be taken.
  void reserve(std::int64_t slots, std::int64_t vocab) {
    MINISGL_CHECK(std::ssize(free) == num_slots, num_slots - std::ssize(free), " sequences have counts");
    counts = allocate_on_device(static_cast<std::size_t>(slots * vocab) * sizeof(std::uint32_t));
    num_slots = slots;
    vocab_size = vocab;
    free.clear();
    for (std::int64_t slot = slots - 1; slot >= 0; --slot) free.push_back(static_cast<std::int32_t>(slot));
  }
  std::uint32_t* of(std::int32_t slot) const { return counts.as<std::uint32_t>() + slot * vocab_size; }
};

class DeviceSeenTokens final : public SeenTokens {
 public:
  DeviceSeenTokens(SeenPool& pool, bool in_prompt, cudaStream_t stream)
      : pool_(pool), in_prompt_(in_prompt), stream_(stream) {
    MINISGL_CHECK(!pool_.free.empty(), "more sequences with penalties than reserved");
    slot_ = pool_.free.back();
    pool_.free.pop_back();
    MINISGL_CUDA_CHECK(cudaMemsetAsync(pool_.of(slot_), 0, static_cast<std::size_t>(pool_.vocab_size) * 4, stream_));
  }
  ~DeviceSeenTokens() override { pool_.free.push_back(slot_); }
  std::int32_t slot() const { return slot_; }

  void add_prompt(std::span<const std::int32_t> tokens) override {
    if (!in_prompt_ || tokens.empty()) return;
    upload(tokens);
    mark_prompt(pool_.of(slot_), tokens_.as<std::int32_t>(), static_cast<int>(tokens.size()), stream_);
  }
  void add_output(std::span<const std::int32_t> tokens) override {
    if (tokens.empty()) return;
    upload(tokens);
    count_output(pool_.of(slot_), tokens_.as<std::int32_t>(), static_cast<int>(tokens.size()), stream_);
  }

 private:
  void upload(std::span<const std::int32_t> tokens) {
    if (tokens.size_bytes() > tokens_.size()) tokens_ = allocate_on_device(tokens.size_bytes());
    // The memory is pageable, so the call returns when the tokens are read.
    MINISGL_CUDA_CHECK(
        cudaMemcpyAsync(tokens_.data(), tokens.data(), tokens.size_bytes(), cudaMemcpyHostToDevice, stream_));
  }

  SeenPool& pool_;
  bool in_prompt_;
  cudaStream_t stream_;
  std::int32_t slot_;
  DeviceBuffer tokens_;
};

}  // namespace minisgl::cuda
