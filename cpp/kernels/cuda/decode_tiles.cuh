// A warp's tiles of the decode kernel: how keys and values come to shared memory, and into the softmax.
#pragma once

#include "kernels/cuda/e4m3.cuh"

namespace minisgl::cuda {

constexpr int kDecodeWarps = 4;

// Of 2-byte elements, as the tensor cores take them.
template <typename T, int dim>
class DecodeTiles {
 public:
  using Product = T;                                     // what the queries are
  static constexpr int kPositions = dim > 64 ? 16 : 32;  // of a tile
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kBytes = 2 * 2 * kTile * static_cast<int>(sizeof(T));  // two stages of keys and values

  __device__ explicit DecodeTiles(unsigned char* memory)
      : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + 2 * kTile) {}

  // Puts 8 columns of a query from `column` on into its row in shared memory.
  __device__ static void put_query(const T (&chunk)[8], int column, T* row) {
    *reinterpret_cast<uint4*>(row + column) = *reinterpret_cast<const uint4*>(chunk);
  }
  // The column of softmax.acc[j][i % 2] in this lane.
  __device__ static int column(int lane, int j, int i) { return 8 * j + 2 * (lane % 4) + i; }

  // Called with the first tile's position, before the others.
  __device__ void begin(const Pages<T>&, std::int32_t, std::int32_t, int) {}
  // Begins to load positions [first, first + kPositions); zeros at and past `end`.
  __device__ __forceinline__ void load(const Pages<T>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    load_rows<T, dim, kPositions>(pages, first, end, keys_ + stage * kTile, values_ + stage * kTile, lane);
  }
  // Folds what was loaded into the softmax.
  __device__ __forceinline__ void fold(const T* queries, std::int32_t first, int stage, const Visible& visible,
                                       bool masked, float scale_log2, Softmax<dim>& softmax) {
    const Visible each[1] = {visible};
    fold_tile<T, dim, kPositions, 1>(queries, keys_ + stage * kTile, values_ + stage * kTile, first, each, masked,
                                     scale_log2, *reinterpret_cast<Softmax<dim>(*)[1]>(&softmax));
  }
  __device__ __forceinline__ void finish(Softmax<dim>&) {}

 private:
  T *keys_, *values_;  // [2][kPositions, dim]
};

// Of bytes. They become f16 on the way to the products: a key's scale multiplies its scores, a value's scale the
// weight. Weights are kept over the largest scale of a value so far, or f16 would lose those of small values.
//
// The 16-byte chunks of a row are exchanged by the row's number, so that eight neighbouring rows' lie in other banks.
template <int dim>
class DecodeTiles<e4m3, dim> {
  static_assert(dim % 64 == 0);

 public:
  using Product = half;
  static constexpr int kPositions = dim > 128 ? 16 : 32;
  static constexpr int kTile = kPositions * dim;
  static constexpr int kBytes = 2 * 2 * (kTile + kPositions * static_cast<int>(sizeof(float)));

  __device__ explicit DecodeTiles(unsigned char* memory) : memory_(memory) {}

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
  // Even columns of 16 are a block of the product's columns, odd ones the next.
  __device__ static int column(int lane, int j, int i) { return j / 2 * 16 + 4 * (lane % 4) + 2 * i + j % 2; }

  // Where a tile's rows lie is looked up while the tile before is on its way.
  __device__ __forceinline__ void begin(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int lane) {
    const std::int32_t position = first + lane;
    row_ = lane < kPositions && position < end ? pages.row_of(position) : -1;
  }
  __device__ __forceinline__ void load(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    load_byte_rows<dim, kPositions>(pages, row_, rows(stage), lane,
                                    [](int row, int chunk) { return place(row, chunk); });
    begin(pages, first + kDecodeWarps * kPositions, end, lane);
  }

  // Products follow each other at once only where they add to different registers.
  __device__ __forceinline__ void fold(const half* queries, std::int32_t first, int stage, const Visible& visible,
                                       bool masked, float scale_log2, Softmax<dim>& softmax) {
    const int lane = threadIdx.x % 32, quarter = lane % 4;
    const ByteRows tile = rows(stage);
    const float own_scale = lane < kPositions ? tile.value_scales[lane] : 0.0f;
    const float largest = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(own_scale)));
    const float new_unit = fmaxf(unit_, largest), inverse = __fdividef(1.0f, new_unit);

    float score[kPositions / 8][4] = {};
#pragma unroll
    for (int block = 0; block < dim / 64; ++block) {
      const int chunk = dim == 64 ? quarter : block / 2 * 8 + 2 * quarter + block % 2;
      uint4 keys[kPositions / 8];
#pragma unroll
      for (int n = 0; n < kPositions / 8; ++n)
        keys[n] = *reinterpret_cast<const uint4*>(tile.keys + place(8 * n + lane / 4, chunk));
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        ldmatrix_x4(a, queries + lane % 16 * kStride<dim> + 64 * block + 16 * step + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < kPositions / 8; ++n) {
          const std::uint32_t words[4] = {keys[n].x, keys[n].y, keys[n].z, keys[n].w};
          std::uint32_t key[2];
          widen(words[step], key[0], key[1]);
          mma_16816<half>(score[n], a, key[0], key[1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
      const float2 scale = *reinterpret_cast<const float2*>(tile.key_scales + 8 * n + 2 * quarter);
#pragma unroll
      for (int i = 0; i < 4; ++i) score[n][i] *= i % 2 == 0 ? scale.x : scale.y;
    }
    float shrink[2];
    weigh<kPositions>(score, first, visible, masked, scale_log2, softmax.max, softmax.sum, shrink);
    shrink[0] *= unit_ * inverse;
    shrink[1] *= unit_ * inverse;
    unit_ = new_unit;
    softmax.scale(shrink);

#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      std::uint32_t a[4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 scale = *reinterpret_cast<const float2*>(tile.value_scales + 16 * k + 8 * n + 2 * quarter);
        const float left = scale.x * inverse, right = scale.y * inverse;
        const auto& weight = score[2 * k + n];
        a[2 * n] = pack2<half>(weight[0] * left, weight[1] * right);
        a[2 * n + 1] = pack2<half>(weight[2] * left, weight[3] * right);
      }
      constexpr int kAtOnce = dim == 128 ? 4 : 2;  // registers for more are not there
#pragma unroll
      for (int d = 0; d < dim / 32; d += kAtOnce) {
        // Pairs of bytes are transposed: of each register the lower pair is one position's, the upper the next one's.
        std::uint32_t pairs[kAtOnce][4];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
          ldmatrix_x4_transposed(pairs[i], tile.values + place(16 * k + lane % 16, 2 * (d + i) + lane / 16));
#pragma unroll
        for (int i = 0; i < 2 * kAtOnce; ++i) {
          std::uint32_t even[2], odd[2];
#pragma unroll
          for (int n = 0; n < 2; ++n) widen(__byte_perm(pairs[i / 2][i % 2 * 2 + n], 0, 0x3120), even[n], odd[n]);
          mma_16816<half>(softmax.acc[4 * d + 2 * i], a, even[0], even[1]);
          mma_16816<half>(softmax.acc[4 * d + 2 * i + 1], a, odd[0], odd[1]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish(Softmax<dim>& softmax) { softmax.scale({unit_, unit_}); }

 private:
  // Where 16 bytes of a row lie in a tile.
  __device__ static int place(int row, int chunk) {
    constexpr int rows_of_line = dim < 128 ? 128 / dim : 1, chunks = dim < 128 ? dim / 16 : 8;
    return row * dim + (chunk ^ row / rows_of_line % chunks) * 16;
  }
  __device__ ByteRows rows(int stage) const {
    auto* scales = reinterpret_cast<float*>(memory_ + 2 * 2 * kTile);
    return {.keys = memory_ + stage * kTile,
            .values = memory_ + (2 + stage) * kTile,
            .key_scales = scales + stage * kPositions,
            .value_scales = scales + (2 + stage) * kPositions};
  }

  unsigned char* memory_;
  std::int32_t row_ = -1;  // of the next tile, this lane's
  float unit_ = 1e-30f;    // what the weights are over, with the inverse still a number
};

}  // namespace minisgl::cuda
