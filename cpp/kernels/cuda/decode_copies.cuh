// How tiles of keys and values come from the pages to a warp's ring in shared memory. They lie there as blocks of 64
// columns, [positions][128 bytes] each, chunk c of 16 bytes of row r at chunk c ^ (r % 8).
#pragma once

#include "kernels/cuda/decode_line.cuh"

namespace minisgl::cuda {

// Finds a tile's rows, one for each lane; pages of any size.
class RowFinder {
 public:
  __device__ __forceinline__ explicit RowFinder(const ops::KvLayer& cache)
      : page_size_(cache.page_size), num_kv_heads_(cache.num_kv_heads), inverse_(0xffffffffu / page_size_ + 1) {
    keep(page_size_, num_kv_heads_, inverse_);
  }
  // Of the tile from `first` on those in [begin, end); -1 for the others. Positions of this step are the last one, or
  // any where the sequence has several rows.
  template <int positions>
  __device__ __forceinline__ void look_up(const AttentionArgs& args, const SequenceEntry& sequence, int kv_head,
                                          std::int32_t begin, std::int32_t end, std::int32_t first) {
    const std::int32_t lane = threadIdx.x % 32, position = first + lane;
    has_new_ = sequence.num_rows > 1 || first + positions >= end;
    row_ = -1;
    if ((positions == 32 || lane < positions) && position >= begin && position < end) {
      // Exact for positions below 2^32 / page_size.
      const std::int32_t page = inverse_ == 0 ? position : static_cast<std::int32_t>(__umulhi(position, inverse_));
      row_ = (args.step.pages[sequence.first_page + page] * num_kv_heads_ + kv_head - page) * page_size_ + position;
    }
  }
  __device__ bool has_new() const { return has_new_; }
  __device__ std::int32_t row() const { return row_; }

 private:
  std::int32_t page_size_, num_kv_heads_;
  std::uint32_t inverse_;  // of page_size over 2^32, 0 for pages of one position
  bool has_new_ = false;
  std::int32_t row_ = -1;
};

// Copies them to the ring, 16 bytes by each lane. What is read once leaves the caches first.
template <typename S>
class TileCopies : public RowFinder {
  using T = typename S::T;
  static constexpr int kChunks = S::kColumnBlocks * 8, kRows = 32 / kChunks;  // that a turn copies
  static_assert(kChunks <= 32);

 public:
  __device__ __forceinline__ TileCopies(const AttentionArgs& args, std::uint32_t ring) : RowFinder(args.cache) {
    const int lane = threadIdx.x % 32, chunk = lane % kChunks, row = lane / kChunks;
    at_ = ring + chunk / 8 * S::kBlockBytes + row * 128 + (chunk % 8 ^ row) * 16;
    keys_ = reinterpret_cast<const T*>(args.cache.keys) + chunk * 8;
    values_ = reinterpret_cast<const T*>(args.cache.values) + chunk * 8;
    row_size_ = args.cache.head_dim;
    bytes_ = chunk * 8 < row_size_ ? 16 : 0;
    policy_ = first_out_policy();
    keep(at_, keys_, values_, row_size_, bytes_, policy_);
  }
  // Begins the copies of the tile that was looked up.
  __device__ __forceinline__ void begin(int stage) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t to = at_ + stage * S::kStageBytes;
#pragma unroll
    for (int i = 0; i < S::kPositions / kRows; ++i) {
      const std::int32_t row = __shfl_sync(0xffffffffu, this->row(), i * kRows + lane / kChunks);
      const std::uint32_t place = (to ^ i * kRows % 8 * 16) + i * kRows * 128;
      const int bytes = row >= 0 ? bytes_ : 0;
      const std::int64_t from = std::int64_t{row} * row_size_;
      copy_16_async(place, keys_ + from, bytes, policy_);
      copy_16_async(place + S::kHalf, values_ + from, bytes, policy_);
    }
  }

 private:
  std::uint32_t at_;
  const T *keys_, *values_;  // this lane's chunk of row 0
  std::int32_t row_size_, bytes_;
  std::uint64_t policy_;
};

}  // namespace minisgl::cuda
