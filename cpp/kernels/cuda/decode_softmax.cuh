// A warp's softmax in the decode kernel: a tile of the ring goes through the tensor cores into it.
#pragma once

#include "kernels/cuda/decode_line.cuh"

namespace minisgl::cuda {

// bf16 to f16.
__device__ __forceinline__ std::uint32_t as_half2(std::uint32_t pair) {
  return pack2<half>(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// A softmax under way over a warp's tiles. Positions, and then columns of values, are the rows of the products, queries
// their columns: of a lane, positions lane / 4 and lane / 4 + 8 of each 16, queries 2 * (lane % 4) and the next of
// each 8.
template <typename S>
class TileSoftmax {
  using T = typename S::T;
  static constexpr int kBlocks = S::kPositions / 16, kGroups = S::queries / 8, dim = S::dim;
  using Scores = float[kBlocks][kGroups][4];

 public:
  // The lane's places in a stage.
  __device__ __forceinline__ TileSoftmax() {
    const int lane = threadIdx.x % 32;
    key_at_ = lane % 16 * 128 + (lane / 16 ^ lane % 8) * 16;
    value_at_ = S::kHalf + (lane % 8 + lane / 16 * 8) * 128 + (lane / 8 % 2 ^ lane % 8) * 16;
    keep(key_at_, value_at_);
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      max_[n][0] = max_[n][1] = -INFINITY;
      sum_[n][0] = sum_[n][1] = 0.0f;
    }
#pragma unroll
    for (auto& columns : acc_) {
#pragma unroll
      for (auto& group : columns) group[0] = group[1] = group[2] = group[3] = 0.0f;
    }
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
                                       float scale_log2, float cap) {
    Scores score;
    find_scores(stage + key_at_, scale_log2, score);
    cap_scores(score, cap * scale_log2);
    mask(first, begin, end, score);
    weigh(score);
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

  // Leaves the greatest scores and the sums [queries], and the weighted values [queries][64 * kColumnBlocks] of f32.
  __device__ __forceinline__ void put(float* max, float* sum, std::uint32_t share) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float total = sum_[n][i];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
        const int query = 8 * n + 2 * (lane % 4) + i;
        if (lane / 4 == 0) {
          max[query] = max_[n][i];
          sum[query] = total;
        }
#pragma unroll
        for (int d = 0; d < dim / 16; ++d) {
#pragma unroll
          for (int half = 0; half < 2; ++half)
            store_shared(share + share_place(query, 16 * d + 8 * half + lane / 4), acc_[d][n][i + 2 * half]);
        }
      }
    }
  }

  // Where a column of a query lies in a share: neighbouring pairs of queries in other banks.
  __device__ static std::uint32_t share_place(int query, int column) {
    return 4 * (query * 64 * S::kColumnBlocks + (column ^ query / 2 % 4 * 8));
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

  // Of a tile from `first` on: scores of positions outside [begin, end) become nothing.
  __device__ __forceinline__ static void mask(std::int32_t first, std::int32_t begin, std::int32_t end, Scores& score) {
    const int lane = threadIdx.x % 32;
    if (first >= begin && first + S::kPositions <= end) return;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int32_t position = first + 16 * m + lane / 4 + i / 2 * 8;
        if (position >= begin && position < end) continue;
#pragma unroll
        for (int n = 0; n < kGroups; ++n) score[m][n][i] = -INFINITY;
      }
    }
  }
  // Scores in units of log 2 become weights over what is taken for the greatest score: one that lies at most kSlack
  // below it, so that sums seldom have to shrink.
  __device__ __forceinline__ void weigh(Scores& score) {
    constexpr float kSlack = 8.0f;
    bool above = false;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) above = above || score[m][n][i] > max_[n][i % 2] + kSlack;
      }
    }
    if (__any_sync(0xffffffffu, above)) raise(score);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float base = max_[n][i] == -INFINITY ? 0.0f : max_[n][i];  // nothing seen yet: every weight becomes 0
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& s = score[m][n][i + 2 * half];
            s = exp2_fast(s - base);
            sum_[n][i] += s;
          }
        }
      }
    }
  }
  __device__ __forceinline__ void raise(const Scores& score) {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = max_[n][i];
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) top = fmaxf(top, fmaxf(score[m][n][i], score[m][n][i + 2]));
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
        const float shrink = top == -INFINITY ? 1.0f : exp2_fast(max_[n][i] - top);
        max_[n][i] = top;
        sum_[n][i] *= shrink;
        scale(n, i, shrink);
      }
    }
  }

  __device__ __forceinline__ void scale(int n, int i, float by) {
#pragma unroll
    for (int d = 0; d < dim / 16; ++d) {
      acc_[d][n][i] *= by;
      acc_[d][n][i + 2] *= by;
    }
  }
  std::uint32_t key_at_, value_at_;
  std::uint32_t query_[kGroups][dim / 16][2];
  float max_[kGroups][2], sum_[kGroups][2];  // this lane's share of the sums
  float acc_[dim / 16][kGroups][4];          // columns 16 * d + lane / 4 and 8 more
};

}  // namespace minisgl::cuda
