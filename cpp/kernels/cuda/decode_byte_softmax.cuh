// A warp's softmax in the decode kernels where the cache holds bytes.
#pragma once

#include "kernels/cuda/decode_softmax.cuh"
#include "kernels/cuda/e4m3.cuh"

namespace minisgl::cuda {

// Where 16 bytes of a row lie in a tile: the chunks of a row are exchanged by the row's number, so that eight
// neighbouring rows' lie in other banks. A tile begins at a multiple of 128 bytes.
template <int dim>
struct ByteTile {
  static constexpr int kChunks = dim / 16;  // of a row
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
};

// Bytes become f16 on the way to the products: a key's scale multiplies its scores, a value's scale the weight. Weights
// are kept over the largest scale of a value so far, or f16 would lose those of small values.
//
// Products sum over columns in any order, so a lane takes 16 columns of a key that lie together: those of k-steps
// 4 * block to 4 * block + 3.
//
// A stage holds keys, values, keys' scales and values' scales of S::kPositions positions.
template <typename S>
class ByteSoftmax : public TileSums<S> {
  using Sums = TileSums<S>;
  using Tile = ByteTile<S::dim>;
  using typename Sums::Scores;
  static constexpr int kTileBytes = S::kPositions * S::dim;

 protected:
  using Sums::kBlocks, Sums::kGroups, Sums::dim, Sums::acc_;

 public:
  __device__ __forceinline__ ByteSoftmax() {
    const int lane = threadIdx.x % 32;
    key_at_ = Tile::place(lane / 4, first_chunk(lane));
    value_at_ = kTileBytes + Tile::place(lane % 16, lane / 16);
    keep(key_at_, value_at_);
  }
  __device__ __forceinline__ void clear() {
    Sums::clear();
    unit_ = 1e-30f;
  }

  // Folds the tile from `first` on that lies at `stage`. find_queries(block, half, query) finds [kGroups][4] registers
  // of queries: those of k-steps 4 * block + 2 * half and the next.
  template <typename FindQueries>
  __device__ __forceinline__ void fold(std::uint32_t stage, const FindQueries& find_queries, std::int32_t first,
                                       std::int32_t begin, std::int32_t end, float scale_log2) {
    const std::uint32_t scales = stage + 2 * kTileBytes + threadIdx.x % 32 / 4 * 4;
    Scores score;
    find_scores(stage + key_at_, scales, find_queries, scale_log2, score);
    Sums::mask(first, begin, end, score);
    Sums::weigh(score);

    float value_scale[kBlocks][2];
    std::uint32_t largest = 0;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        value_scale[m][half] = load_shared<float>(scales + 4 * (S::kPositions + 16 * m + 8 * half));
        largest = max(largest, __float_as_uint(value_scale[m][half]));
      }
    }
    const float unit = fmaxf(unit_, __uint_as_float(__reduce_max_sync(0xffffffffu, largest)));
    const float inverse = inverse_of(unit);
    if (unit > unit_) scale(unit_ * inverse);
    unit_ = unit;

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
        ldmatrix_x4_transposed(pairs, Tile::beside(stage + value_at_ + 16 * m * dim, 2 * d));
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

  // Leaves the greatest scores and the sums [queries], and by store(query, column, pair) the weighted values: an even
  // column's and the next one's.
  template <typename Store>
  __device__ __forceinline__ void put(float* max, float* sum, const Store& store) {
    this->put_sums(max, sum);
    scale(unit_);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int c = 0; c < dim / 16; ++c)
          store(8 * n + 2 * (lane % 4) + i, 16 * c + 2 * (lane / 4), float2{acc_[c][n][i], acc_[c][n][i + 2]});
      }
    }
  }

 protected:
  // Of a row the first chunk that a lane takes.
  __device__ static int first_chunk(int lane) { return dim == 64 ? lane % 4 : 2 * (lane % 4); }
  // Of a block the chunk that lies as far from the first.
  __device__ static constexpr int further_chunk(int block) { return block / 2 * 8 + block % 2; }

 private:
  // Products follow each other at once only where they add to different registers.
  template <typename FindQueries>
  __device__ __forceinline__ void find_scores(std::uint32_t keys, std::uint32_t scales, const FindQueries& find_queries,
                                              float scale_log2, Scores& score) const {
    float part[2][kBlocks][kGroups][4] = {};
#pragma unroll
    for (int block = 0; block < dim / 64; ++block) {
      const std::uint32_t from = Tile::beside(keys, further_chunk(block));
      uint4 upper[kBlocks], lower[kBlocks];
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        upper[m] = load_shared<uint4>(from + 16 * m * dim);
        lower[m] = load_shared<uint4>(from + (16 * m + 8) * dim);
      }
#pragma unroll
      for (int two = 0; two < 2; ++two) {  // steps
        std::uint32_t query[kGroups][4];
        find_queries(block, two, query);
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
      const float upper = load_shared<float>(scales + 4 * 16 * m) * scale_log2;
      const float lower = load_shared<float>(scales + 4 * (16 * m + 8)) * scale_log2;
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) score[m][n][i] = (part[0][m][n][i] + part[1][m][n][i]) * (i < 2 ? upper : lower);
      }
    }
  }
  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      Sums::scale(n, 0, by);
      Sums::scale(n, 1, by);
    }
  }
  __device__ __forceinline__ static float inverse_of(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
  }

  std::uint32_t key_at_, value_at_;  // the lane's places in a stage
  float unit_ = 1e-30f;              // what the weights are over, with the inverse still a number
};

}  // namespace minisgl::cuda
