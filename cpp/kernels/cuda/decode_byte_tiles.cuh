// A warp's tiles of the decode kernel where the cache holds bytes.
#pragma once

#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/e4m3.cuh"

namespace minisgl::cuda {

// They become f16 on the way to the products: a key's scale multiplies its scores, a value's scale the weight. Weights
// are kept over the largest scale of a value so far, or f16 would lose those of small values.
//
// Keys, and then the columns of values, are the rows of the products, and eight queries are their columns: queries as
// rows would take twice as many products where a KV head has at most eight.
//
// The 16-byte chunks of a row are exchanged by the row's number, so that eight neighbouring rows' lie in other banks.
template <int dim, int queries>
class DecodeTiles<e4m3, dim, queries> {
  static_assert(dim % 64 == 0 && queries % 8 == 0);
  static constexpr int kChunks = dim / 16;  // of a row

 public:
  using Product = half;
  static constexpr int kWarps = 4;
  static constexpr int kPositions = dim > 128 ? 16 : 32;
  static constexpr int kRound = kWarps * kPositions;
  static constexpr int kLeastTiles = 256 / kPositions, kExtraTiles = kLeastTiles;
  static constexpr int kLeastResident = dim > 64 ? 3 : 4;
  static constexpr int kTile = kPositions * dim;
  static constexpr int kStage = 2 * kTile + 2 * kPositions * 4;  // keys, values, keys' scales, values' scales
  static constexpr int kBytes = 2 * kStage;
  static_assert(kBytes % 128 == 0);

  // The memory begins at a multiple of 128 bytes.
  __device__ explicit DecodeTiles(unsigned char* memory) : start_(shared_address(memory)) {
    const int lane = threadIdx.x % 32;
    copy_at_ = start_ + place(lane / kChunks, lane % kChunks);
    key_at_ = start_ + place(lane / 4, dim == 64 ? lane % 4 : 2 * (lane % 4));
    value_at_ = start_ + kTile + place(lane % 16, lane / 16);
    scale_at_ = start_ + 2 * kTile + lane / 4 * 4;
    keep(start_, copy_at_, key_at_, value_at_, scale_at_);
    for (auto& group : max_) group[0] = group[1] = -INFINITY;
  }

  // Products sum over columns in any order, so a lane takes 16 columns of a key that lie together: those of k-steps
  // 4 * block to 4 * block + 3. Columns of the queries are exchanged to match.
  __device__ static void put_query(const half (&from)[8], int column, half* row) {
    const int chunk = column / 16;
    const int block = dim == 64 ? 0 : chunk / 8 * 2 + chunk % 2, quarter = dim == 64 ? chunk : chunk % 8 / 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // pairs: two of each k-step, 8 columns apart
      const int step = column % 16 / 4 + i / 2;
      *reinterpret_cast<half2*>(row + 64 * block + 16 * step + 8 * (i % 2) + 2 * quarter) = {from[2 * i],
                                                                                             from[2 * i + 1]};
    }
  }

  __device__ __forceinline__ void begin(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int lane) {
    keys_ = pages.keys + lane % kChunks * 16;
    values_ = pages.values + lane % kChunks * 16;
    keep(keys_, values_);
    rows_.begin(pages, first, end, lane);
  }
  __device__ __forceinline__ void load(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    constexpr int kRows = 32 / kChunks;  // that a turn copies
    const std::uint32_t to = copy_at_ + stage * kStage;
    const bool inside = lane % kChunks * 16 < pages.head_dim;
    const std::int32_t own_row = rows_.row();
#pragma unroll
    for (int i = 0; i < kPositions / kRows; ++i) {
      const std::int32_t row = __shfl_sync(0xffffffffu, own_row, i * kRows + lane / kChunks);
      const std::int64_t from = std::int64_t{row} * pages.head_dim;
      copy_16_async(below(to, i * kRows), keys_ + from, inside && row >= 0);
      copy_16_async(below(to, i * kRows) + kTile, values_ + from, inside && row >= 0);
    }
    if (lane < kPositions) {
      const std::uint32_t scales = start_ + stage * kStage + 2 * kTile + 4 * lane;
      copy_4_async(scales, pages.key_scales + own_row, own_row >= 0);
      copy_4_async(scales + 4 * kPositions, pages.value_scales + own_row, own_row >= 0);
    }
    rows_.advance(pages, first, end, lane);
  }

  __device__ __forceinline__ void fold(const half* query_rows, std::int32_t first, int stage, std::int32_t,
                                       std::int32_t end, bool masked, float scale_log2, float cap) {
    const int lane = threadIdx.x % 32;
    Scores score;
    find_scores(query_rows, stage, score);
    cap_scores(score, cap);
    if (masked) {
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (first + 16 * m + lane / 4 + i / 2 * 8 < end) continue;
#pragma unroll
          for (int n = 0; n < kGroups; ++n) score[m][n][i] = -INFINITY;
        }
      }
    }
    float value_scale[kBlocks][2];
    std::uint32_t largest = 0;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        value_scale[m][half] = load_shared<float>(scale_at(stage) + 4 * (kPositions + 16 * m + 8 * half));
        largest = max(largest, __float_as_uint(value_scale[m][half]));
      }
    }
    const float unit = fmaxf(unit_, __uint_as_float(__reduce_max_sync(0xffffffffu, largest)));
    const float inverse = reciprocal_fast(unit);
    weigh(score, scale_log2, unit_ * inverse);
    unit_ = unit;

    const std::uint32_t values = value_at_ + stage * kStage;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const float upper = value_scale[m][0] * inverse, lower = value_scale[m][1] * inverse;
      std::uint32_t weight[kGroups][2];
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        weight[n][0] = transposed(pack2<half>(score[m][n][0] * upper, score[m][n][1] * upper));
        weight[n][1] = transposed(pack2<half>(score[m][n][2] * lower, score[m][n][3] * lower));
      }
#pragma unroll
      for (int d = 0; d < dim / 32; ++d) {
        // Pairs of bytes are transposed: of each register the lower pair is one position's, the upper the next one's.
        std::uint32_t pairs[4];
        ldmatrix_x4_transposed(pairs, beside(values + 16 * m * dim, 2 * d));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t a[4];  // even columns are the upper rows of the product, odd ones the lower
          widen(__byte_perm(pairs[2 * half], 0, 0x3120), a[0], a[1]);
          widen(__byte_perm(pairs[2 * half + 1], 0, 0x3120), a[2], a[3]);
#pragma unroll
          for (int n = 0; n < kGroups; ++n) mma_16816<::half>(acc_[2 * d + half][n], a, weight[n][0], weight[n][1]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish() {
    float units[kGroups][2];
    for (auto& group : units) group[0] = group[1] = unit_;
    scale(units);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) sum_[n][i] += __shfl_xor_sync(0xffffffffu, sum_[n][i], mask);
      }
    }
  }
  __device__ __forceinline__ void put(int num_queries, const WarpShare& to) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int query = 8 * n + 2 * (lane % 4) + i;
        if (query >= num_queries) continue;
        if (lane / 4 == 0) {
          to.max[query] = max_[n][i];
          to.sum[query] = sum_[n][i];
        }
#pragma unroll
        for (int c = 0; c < dim / 16; ++c)
          *reinterpret_cast<float2*>(to.acc + query * dim + 16 * c + 2 * (lane / 4)) = {acc_[c][n][i],
                                                                                        acc_[c][n][i + 2]};
      }
    }
  }

 private:
  static constexpr int kBlocks = kPositions / 16, kGroups = queries / 8;  // of positions, of queries
  // Of a lane: positions lane / 4 and lane / 4 + 8 of each block, queries 2 * (lane % 4) and the next of each group.
  using Scores = float[kBlocks][kGroups][4];

  // Scores without the queries' scale. Products follow each other at once only where they add to different registers.
  __device__ __forceinline__ void find_scores(const half* query_rows, int stage, Scores& score) const {
    const int lane = threadIdx.x % 32;
    const std::uint32_t keys = key_at_ + stage * kStage;
    float part[2][kBlocks][kGroups][4] = {};
#pragma unroll
    for (int block = 0; block < dim / 64; ++block) {
      const std::uint32_t from = beside(keys, block / 2 * 8 + block % 2);
      uint4 upper[kBlocks], lower[kBlocks];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        upper[m] = load_shared<uint4>(from + 16 * m * dim);
        lower[m] = load_shared<uint4>(from + (16 * m + 8) * dim);
      }
#pragma unroll
      for (int two = 0; two < 2; ++two) {  // steps
        std::uint32_t query[kGroups][4];
#pragma unroll
        for (int n = 0; n < kGroups; ++n)
          ldmatrix_x4(query[n], query_rows + (8 * n + lane % 8) * kStride<dim> + 64 * block + 32 * two + lane / 8 * 8);
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
          const std::uint32_t words[2][4] = {{upper[m].x, upper[m].y, upper[m].z, upper[m].w},
                                             {lower[m].x, lower[m].y, lower[m].z, lower[m].w}};
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            std::uint32_t a[4];
            widen(words[0][2 * two + step], a[0], a[2]);
            widen(words[1][2 * two + step], a[1], a[3]);
#pragma unroll
            for (int n = 0; n < kGroups; ++n)
              mma_16816<half>(part[step][m][n], a, query[n][2 * step], query[n][2 * step + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const float upper = load_shared<float>(scale_at(stage) + 4 * 16 * m);
      const float lower = load_shared<float>(scale_at(stage) + 4 * (16 * m + 8));
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) score[m][n][i] = (part[0][m][n][i] + part[1][m][n][i]) * (i < 2 ? upper : lower);
      }
    }
  }

  // Scores become weights: 2^(score * scale_log2) over the greatest so far. What was weighed before shrinks to match,
  // and values by `by` besides.
  __device__ __forceinline__ void weigh(Scores& score, float scale_log2, float by) {
    float shrink[kGroups][2];
    bool same = true;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = fmaxf(score[0][n][i], score[0][n][i + 2]);
#pragma unroll
        for (int m = 1; m < kBlocks; ++m) top = fmaxf(top, fmaxf(score[m][n][i], score[m][n][i + 2]));
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
        const float new_max = fmaxf(max_[n][i], top * scale_log2);
        const float base = new_max == -INFINITY ? 0.0f : new_max;  // nothing seen yet: every weight becomes 0
        shrink[n][i] = exp2_fast(max_[n][i] - base);
        max_[n][i] = new_max;
        sum_[n][i] *= shrink[n][i];
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            score[m][n][i + 2 * half] = exp2_fast(score[m][n][i + 2 * half] * scale_log2 - base);
            sum_[n][i] += score[m][n][i + 2 * half];
          }
        }
        shrink[n][i] *= by;
        same = same && shrink[n][i] == 1.0f;
      }
    }
    if (!__all_sync(0xffffffffu, same)) scale(shrink);
  }
  __device__ __forceinline__ void scale(const float (&by)[kGroups][2]) {
#pragma unroll
    for (int c = 0; c < dim / 16; ++c) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc_[c][n][i] *= by[n][i % 2];
      }
    }
  }

  // Where 16 bytes of a row lie in a tile.
  static constexpr int kRowsOfLine = dim < 128 ? 128 / dim : 1, kExchanged = dim < 128 ? kChunks : 8;
  __device__ static int place(int row, int chunk) { return row * dim + (chunk ^ row / kRowsOfLine % kExchanged) * 16; }
  // The place `rows` rows below a place, of whose row's number they share no bit.
  __device__ static std::uint32_t below(std::uint32_t at, int rows) {
    return (at ^ rows / kRowsOfLine % kExchanged * 16) + rows * dim;
  }
  // The place `chunks` chunks further in the row, of whose number they share no bit.
  __device__ static std::uint32_t beside(std::uint32_t at, int chunks) {
    return (at ^ chunks % kExchanged * 16) + chunks / kExchanged * kExchanged * 16;
  }
  __device__ std::uint32_t scale_at(int stage) const { return scale_at_ + stage * kStage; }

  std::uint32_t start_;                                   // in shared memory
  std::uint32_t copy_at_, key_at_, value_at_, scale_at_;  // this lane's places in the first stage
  const e4m3 *keys_, *values_;                            // this lane's chunks of row 0
  RowsAhead<kPositions, kRound> rows_;
  float unit_ = 1e-30f;                           // what the weights are over, with the inverse still a number
  float max_[kGroups][2], sum_[kGroups][2] = {};  // in units of log 2, -inf before the first; this lane's share
  float acc_[dim / 16][kGroups][4] = {};  // columns 16 * c + 2 * (lane / 4) of two queries, and the next column's
};

}  // namespace minisgl::cuda
