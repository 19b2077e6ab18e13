// How tiles of bytes go through the decode of many sequences.
#pragma once

#include "kernels/cuda/decode_byte_softmax.cuh"
#include "kernels/cuda/decode_copies.cuh"

namespace minisgl::cuda {

template <typename S>
class TileCopies<S, e4m3> : public RowFinder {
  using Tile = ByteTile<S::dim>;
  static constexpr int kRows = 32 / Tile::kChunks;  // that a turn copies
  static_assert(S::kPositions == 32);               // each lane copies a position's scales

 public:
  __device__ __forceinline__ TileCopies(const AttentionArgs& args, std::uint32_t ring)
      : RowFinder(args.cache), key_scales_(args.cache.key_scales), value_scales_(args.cache.value_scales) {
    const int lane = threadIdx.x % 32, chunk = lane % Tile::kChunks;
    at_ = ring + Tile::place(lane / Tile::kChunks, chunk);
    scales_at_ = ring + 2 * S::kHalf + 4 * lane;
    keys_ = reinterpret_cast<const e4m3*>(args.cache.keys) + chunk * 16;
    values_ = reinterpret_cast<const e4m3*>(args.cache.values) + chunk * 16;
    row_size_ = args.cache.head_dim;
    bytes_ = chunk * 16 < row_size_ ? 16 : 0;
    policy_ = first_out_policy();
    keep(at_, scales_at_, keys_, values_, row_size_, bytes_, policy_);
  }
  // Begins the copies of the tile that was looked up.
  __device__ __forceinline__ void begin(int stage) {
    const int lane = threadIdx.x % 32;
    const std::uint32_t to = at_ + stage * S::kStageBytes, scales = scales_at_ + stage * S::kStageBytes;
#pragma unroll
    for (int i = 0; i < S::kPositions / kRows; ++i) {
      const std::int32_t row = __shfl_sync(0xffffffffu, this->row(), i * kRows + lane / Tile::kChunks);
      const int bytes = row >= 0 ? bytes_ : 0;
      const std::int64_t from = std::int64_t{row} * row_size_;
      copy_16_async(Tile::below(to, i * kRows), keys_ + from, bytes, policy_);
      copy_16_async(Tile::below(to, i * kRows) + S::kHalf, values_ + from, bytes, policy_);
    }
    copy_4_async(scales, key_scales_ + row(), row() >= 0);
    copy_4_async(scales + 4 * S::kPositions, value_scales_ + row(), row() >= 0);
  }

 private:
  const float *key_scales_, *value_scales_;
  std::uint32_t at_, scales_at_;
  const e4m3 *keys_, *values_;  // this lane's chunk of row 0
  std::int32_t row_size_, bytes_;
  std::uint64_t policy_;
};

template <typename S>
class TileSoftmax<S, e4m3> : public ByteSoftmax<S> {
  using Bytes = ByteSoftmax<S>;
  using Bytes::kGroups, Bytes::dim;

 public:
  // Takes num_queries heads [head_dim] that follow each other.
  __device__ __forceinline__ void load_queries(const bf16* heads, int num_queries, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int query = 8 * n + lane / 4;
#pragma unroll
      for (int block = 0; block < dim / 64; ++block) {
        const int column = 16 * (Bytes::first_chunk(lane) + Bytes::further_chunk(block));
        const bool inside = query < num_queries && column < head_dim;
        const auto* chunk = reinterpret_cast<const uint4*>(heads + query * head_dim + column);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 from = inside ? chunk[half] : uint4{};
          query_[n][block][half][0] = from.x;
          query_[n][block][half][1] = from.y;
          query_[n][block][half][2] = from.z;
          query_[n][block][half][3] = from.w;
        }
      }
    }
  }
  // Called once they are needed.
  __device__ __forceinline__ void convert_queries() {
#pragma unroll
    for (auto& group : query_) {
#pragma unroll
      for (auto& block : group) {
#pragma unroll
        for (auto& steps : block) {
#pragma unroll
          for (auto& pair : steps) pair = as_half2(pair);
        }
      }
    }
  }
  // Folds the tile from `first` on that lies at `stage`.
  __device__ __forceinline__ void fold(std::uint32_t stage, std::int32_t first, std::int32_t begin, std::int32_t end,
                                       float scale_log2) {
    const auto find_queries = [&](int block, int half, std::uint32_t (&query)[kGroups][4]) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) query[n][i] = query_[n][block][half][i];
      }
    };
    Bytes::fold(stage, find_queries, first, begin, end, scale_log2);
  }
  // Leaves the greatest scores and the sums [queries], and the weighted values [queries][64 * kColumnBlocks] of f32.
  __device__ __forceinline__ void put(float* max, float* sum, std::uint32_t share) {
    Bytes::put(max, sum, [&](int query, int column, float2 pair) {
      store_shared(share + share_place<S>(query, column), pair.x);
      store_shared(share + share_place<S>(query, column + 1), pair.y);
    });
  }

 private:
  std::uint32_t query_[kGroups][dim / 64][2][4];
};

}  // namespace minisgl::cuda
