// Where the positions of the decode kernel's tiles lie in the cache.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

// Finds a tile's rows, one for each lane; pages of any size.
class RowFinder {
 public:
  __device__ __forceinline__ explicit RowFinder(const ops::KvLayer& cache)
      : page_size_(cache.page_size), num_kv_heads_(cache.num_kv_heads), inverse_(0xffffffffu / page_size_ + 1) {
    keep(page_size_, num_kv_heads_, inverse_);
  }
  // Of the tile from `first` on those in [begin, end); -1 for the others.
  template <int positions>
  __device__ __forceinline__ void look_up(const AttentionArgs& args, const SequenceEntry& sequence, int kv_head,
                                          std::int32_t begin, std::int32_t end, std::int32_t first) {
    const std::int32_t lane = threadIdx.x % 32, position = first + lane;
    has_last_ = first + positions >= end;
    row_ = -1;
    if ((positions == 32 || lane < positions) && position >= begin && position < end) {
      // Exact for positions below 2^32 / page_size.
      const std::int32_t page = inverse_ == 0 ? position : static_cast<std::int32_t>(__umulhi(position, inverse_));
      row_ = (args.step.pages[sequence.first_page + page] * num_kv_heads_ + kv_head - page) * page_size_ + position;
    }
  }
  __device__ bool has_last() const { return has_last_; }
  __device__ std::int32_t row() const { return row_; }

 private:
  std::int32_t page_size_, num_kv_heads_;
  std::uint32_t inverse_;  // of page_size over 2^32, 0 for pages of one position
  bool has_last_ = false;
  std::int32_t row_ = -1;
};

}  // namespace minisgl::cuda
