// A warp's tiles of the decode kernel: how keys and values come to shared memory, and into the softmax.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

// Where a warp leaves its share for the merge: of each query the greatest score and the sum of the weights [queries],
// and the weighted values [queries, dim]. All in shared memory.
struct WarpShare {
  float *max, *sum, *acc;
};

// Of 2-byte elements, as the tensor cores take them. Queries are the rows of the products.
template <typename T, int dim, int queries>
class DecodeTiles {
  static_assert(queries == 16);

 public:
  using Product = T;                                     // what the queries are
  static constexpr int kWarps = 4;                       // of a block
  static constexpr int kPositions = dim > 64 ? 16 : 32;  // of a tile
  static constexpr int kRound = kWarps * kPositions;     // of the block's tiles together
  static constexpr int kLeastRounds = 4;                 // of a part: merging smaller ones takes longer than they save
  static constexpr bool kEvenParts = false;              // all parts but the last have as many rounds
  static constexpr int kLeastResident = 1;               // blocks of a processor that registers are left for
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kBytes = 2 * 2 * kTile * static_cast<int>(sizeof(T));  // two stages of keys and values

  __device__ explicit DecodeTiles(unsigned char* memory)
      : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + 2 * kTile) {
    softmax_[0].clear();
  }

  // Puts 8 columns of a query from `column` on into its row in shared memory.
  __device__ static void put_query(const T (&chunk)[8], int column, T* row) {
    *reinterpret_cast<uint4*>(row + column) = *reinterpret_cast<const uint4*>(chunk);
  }

  // Called with the first tile's position, before the others.
  __device__ void begin(const Pages<T>&, std::int32_t, std::int32_t, int) {}
  // Begins to load positions [first, first + kPositions); zeros at and past `end`.
  __device__ __forceinline__ void load(const Pages<T>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    load_rows<T, dim, kPositions>(pages, first, end, keys_ + stage * kTile, values_ + stage * kTile, lane);
  }
  // Folds what was loaded into the softmax; positions are visible before `end`, and masked says whether some are not.
  __device__ __forceinline__ void fold(const T* query_rows, std::int32_t first, int stage, std::int32_t begin,
                                       std::int32_t end, bool masked, float scale_log2, float cap) {
    const Visible each[1] = {{.low = {begin, begin}, .high = {end, end}}};
    fold_tile<T, dim, kPositions, 1>(query_rows, keys_ + stage * kTile, values_ + stage * kTile, first, each, masked,
                                     scale_log2, cap, softmax_);
  }
  // Sums over the warp, after the last tile.
  __device__ __forceinline__ void finish() { finish_sums(softmax_[0]); }
  __device__ __forceinline__ void put(int num_queries, const WarpShare& to) const {
    const int lane = threadIdx.x % 32;
    const Softmax<dim>& softmax = softmax_[0];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = lane / 4 + 8 * half;
      if (query >= num_queries) continue;
      if (lane % 4 == 0) {
        to.max[query] = softmax.max[half];
        to.sum[query] = softmax.sum[half];
      }
#pragma unroll
      for (int j = 0; j < dim / 8; ++j) {
        to.acc[query * dim + 8 * j + 2 * (lane % 4)] = softmax.acc[j][2 * half];
        to.acc[query * dim + 8 * j + 2 * (lane % 4) + 1] = softmax.acc[j][2 * half + 1];
      }
    }
  }

 private:
  T *keys_, *values_;  // [2][kPositions, dim]
  Softmax<dim> softmax_[1];
};

}  // namespace minisgl::cuda
