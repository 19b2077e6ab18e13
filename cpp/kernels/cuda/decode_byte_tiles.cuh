// The decode kernel's tiles where the cache holds bytes.
#pragma once

#include "kernels/cuda/decode_tiles.cuh"
#include "kernels/cuda/e4m3.cuh"

namespace minisgl::cuda {

// Where 16 bytes of a row lie in a tile: the chunks of a row are exchanged by the row's number, so that eight
// neighbouring rows' lie in other banks.
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

template <typename S>
class TileCopies<S, e4m3> : public RowFinder {
  using Tile = ByteTile<S::dim>;
  static constexpr int kRows = 32 / Tile::kChunks;  // that a turn copies
  static_assert(S::kPositions == 32);

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

// Bytes become f16 on the way to the products: a key's scale multiplies its scores, a value's scale the weight. Weights
// are kept over the largest scale of a value so far, or f16 would lose those of small values.
template <typename S>
class TileSoftmax<S, e4m3> : public TileSums<S> {
  using Base = TileSums<S>;
  using Tile = ByteTile<S::dim>;
  using Base::kBlocks, Base::kGroups, Base::dim, Base::acc_;
  using typename Base::Scores;

 public:
  __device__ __forceinline__ TileSoftmax() {
    const int lane = threadIdx.x % 32;
    key_at_ = Tile::place(lane / 4, dim == 64 ? lane % 4 : 2 * (lane % 4));
    value_at_ = S::kHalf + Tile::place(lane % 16, lane / 16);
    keep(key_at_, value_at_);
  }

  // Products sum over columns in any order, so a lane takes 16 columns of a key that lie together: those of k-steps
  // 4 * block to 4 * block + 3.
  __device__ __forceinline__ void load_queries(const bf16* heads, int num_queries, int head_dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int query = 8 * n + lane / 4;
#pragma unroll
      for (int block = 0; block < dim / 64; ++block) {
        const int column = 16 * ((dim == 64 ? lane % 4 : 2 * (lane % 4)) + block / 2 * 8 + block % 2);
        uint4 from[2] = {};
        if (query < num_queries && column < head_dim) {
          const auto* chunk = reinterpret_cast<const uint4*>(heads + query * head_dim + column);
          from[0] = chunk[0];
          from[1] = chunk[1];
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          query_[n][block][4 * i] = from[i].x;
          query_[n][block][4 * i + 1] = from[i].y;
          query_[n][block][4 * i + 2] = from[i].z;
          query_[n][block][4 * i + 3] = from[i].w;
        }
      }
    }
  }
  __device__ __forceinline__ void convert_queries() {
    unit_ = 1e-30f;
#pragma unroll
    for (auto& group : query_) {
#pragma unroll
      for (auto& block : group) {
#pragma unroll
        for (auto& pair : block) pair = as_half2(pair);
      }
    }
  }

  __device__ __forceinline__ void fold(std::uint32_t stage, std::int32_t first, std::int32_t begin, std::int32_t end,
                                       float scale_log2) {
    const std::uint32_t scales = stage + 2 * S::kHalf + threadIdx.x % 32 / 4 * 4;
    Scores score;
    find_scores(stage + key_at_, scales, scale_log2, score);
    Base::mask(first, begin, end, score);
    Base::weigh(score);

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

  __device__ __forceinline__ void put(float* max, float* sum, std::uint32_t share) {
    scale(unit_);
    const int lane = threadIdx.x % 32;
    Base::put(max, sum, share, [&](int d, int half) { return 16 * d + 2 * (lane / 4) + half; });
  }

 private:
  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      Base::scale(n, 0, by);
      Base::scale(n, 1, by);
    }
  }
  __device__ __forceinline__ void find_scores(std::uint32_t keys, std::uint32_t scales, float scale_log2,
                                              Scores& score) const {
    float part[2][kBlocks][kGroups][4] = {};  // products follow each other at once only where they add elsewhere
#pragma unroll
    for (int block = 0; block < dim / 64; ++block) {
      const std::uint32_t from = Tile::beside(keys, block / 2 * 8 + block % 2);
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        const auto upper = load_shared<uint4>(from + 16 * m * dim),
                   lower = load_shared<uint4>(from + (16 * m + 8) * dim);
        const std::uint32_t words[2][4] = {{upper.x, upper.y, upper.z, upper.w}, {lower.x, lower.y, lower.z, lower.w}};
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          std::uint32_t a[4];
          widen(words[0][step], a[0], a[2]);
          widen(words[1][step], a[1], a[3]);
#pragma unroll
          for (int n = 0; n < kGroups; ++n)
            mma_16816<half>(part[step % 2][m][n], a, query_[n][block][2 * step], query_[n][block][2 * step + 1]);
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
  __device__ __forceinline__ static float inverse_of(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
  }

  std::uint32_t key_at_, value_at_;
  std::uint32_t query_[kGroups][dim / 64][8];
  float unit_;  // what the weights are over, with the inverse still a number
};

}  // namespace minisgl::cuda
