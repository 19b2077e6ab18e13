// The decode kernel's tiles of 2-byte elements: how they come to shared memory, and into the softmax. Keys and values
// lie there as blocks of 64 columns, [positions][128 bytes] each; chunk c of 16 bytes of row r at chunk c ^ (r % 8).
#pragma once

#include "kernels/cuda/decode_rows.cuh"
#include "kernels/cuda/decode_softmax.cuh"

namespace minisgl::cuda {

// Copies tiles to the ring, 16 bytes by each lane. What is read once leaves the caches first.
template <typename S, typename Cached = typename S::T>
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

// Of 2-byte elements.
template <typename S, typename T = typename S::T>
class TileSoftmax : public TileSums<S> {
  using Base = TileSums<S>;
  using Base::kBlocks, Base::kGroups, Base::dim, Base::acc_;
  using typename Base::Scores;

 public:
  // The lane's places in a stage.
  __device__ __forceinline__ TileSoftmax() {
    const int lane = threadIdx.x % 32;
    key_at_ = lane % 16 * 128 + (lane / 16 ^ lane % 8) * 16;
    value_at_ = S::kHalf + (lane % 8 + lane / 16 * 8) * 128 + (lane / 8 % 2 ^ lane % 8) * 16;
    keep(key_at_, value_at_);
  }

  // Takes num_queries heads [head_dim] that follow each other.
  __device__ __forceinline__ void load_queries(const bf16* heads, int num_queries, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int query = 8 * n + lane / 4;
#pragma unroll
      for (int k = 0; k < dim / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = 16 * k + 8 * half + 2 * (lane % 4);
          std::uint32_t pair = 0;
          if (query < num_queries && column < head_dim)
            pair = *reinterpret_cast<const std::uint32_t*>(heads + query * head_dim + column);
          query_[n][k][half] = pair;
        }
      }
    }
  }
  // Called once they are needed.
  __device__ __forceinline__ void convert_queries() {
    if constexpr (!std::is_same_v<T, bf16>) {
#pragma unroll
      for (auto& group : query_) {
#pragma unroll
        for (auto& step : group) {
#pragma unroll
          for (auto& pair : step) pair = as_half2(pair);
        }
      }
    }
  }

  // Folds the tile from `first` on that lies at `stage`.
  __device__ __forceinline__ void fold(std::uint32_t stage, std::int32_t first, std::int32_t begin, std::int32_t end,
                                       float scale_log2) {
    Scores score;
    find_scores(stage + key_at_, scale_log2, score);
    Base::mask(first, begin, end, score);
    Base::weigh(score);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      std::uint32_t weight[kGroups][2];
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        weight[n][0] = transposed(pack2<T>(score[m][n][0], score[m][n][1]));
        weight[n][1] = transposed(pack2<T>(score[m][n][2], score[m][n][3]));
      }
#pragma unroll
      for (int d = 0; d < dim / 16; ++d) {
        std::uint32_t a[4];
        ldmatrix_x4_transposed(a, place(stage + value_at_, m, 2 * d));
#pragma unroll
        for (int n = 0; n < kGroups; ++n) mma_16816<T>(acc_[d][n], a, weight[n][0], weight[n][1]);
      }
    }
  }

  __device__ __forceinline__ void put(float* max, float* sum, std::uint32_t share) const {
    const int lane = threadIdx.x % 32;
    Base::put(max, sum, share, [&](int d, int half) { return 16 * d + 8 * half + lane / 4; });
  }

 private:
  // The place of block m of positions and of a chunk whose number shares no bit with the lane's.
  __device__ static std::uint32_t place(std::uint32_t at, int m, int chunk) {
    return (at ^ chunk % 8 * 16) + chunk / 8 * S::kBlockBytes + m * 2048;
  }
  __device__ __forceinline__ void find_scores(std::uint32_t keys, float scale_log2, Scores& score) const {
    float part[2][kBlocks][kGroups][4] = {};  // products follow each other at once only where they add elsewhere
#pragma unroll
    for (int k = 0; k < dim / 16; ++k) {
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        std::uint32_t a[4];
        ldmatrix_x4(a, place(keys, m, 2 * k));
#pragma unroll
        for (int n = 0; n < kGroups; ++n) mma_16816<T>(part[k % 2][m][n], a, query_[n][k][0], query_[n][k][1]);
      }
    }
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) score[m][n][i] = (part[0][m][n][i] + part[1][m][n][i]) * scale_log2;
      }
    }
  }

  std::uint32_t key_at_, value_at_;
  std::uint32_t query_[kGroups][dim / 16][2];
};

}  // namespace minisgl::cuda
