// A warp's tiles of the decode kernel: how keys and values come to shared memory, and into the softmax.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

// Where a warp leaves its share for the merge: of each query the greatest score and the sum of the weights [queries],
// and the weighted values [queries, dim]. All in shared memory.
struct WarpShare {
  float *max, *sum, *acc;
};

// Where a warp's tiles lie, each kRound positions behind the one before: rows are looked up two tiles ahead and without
// a division, a position by each lane.
template <int positions, int round>
class RowsAhead {
 public:
  // Tiles from `first` on, up to `end`.
  template <typename T>
  __device__ __forceinline__ void begin(const Pages<T>& pages, std::int32_t first, std::int32_t end, int lane) {
    const int page = (first + lane) / pages.page_size;
    page_ = pages.table + page;
    offset_ = first + lane - page * pages.page_size;
    pages_of_round_ = round / pages.page_size;
    rest_of_round_ = round % pages.page_size;
    keep(pages_of_round_, rest_of_round_);
    row_ = look_up(pages, first, end, lane);
    next_row_ = look_up(pages, first + round, end, lane);
  }
  // The lane's row of the tile in turn, -1 at and past the end.
  __device__ std::int32_t row() const { return row_; }
  // To the tile behind the one from `first` on.
  template <typename T>
  __device__ __forceinline__ void advance(const Pages<T>& pages, std::int32_t first, std::int32_t end, int lane) {
    row_ = next_row_;
    next_row_ = look_up(pages, first + 2 * round, end, lane);
  }

 private:
  template <typename T>
  __device__ __forceinline__ std::int32_t look_up(const Pages<T>& pages, std::int32_t first, std::int32_t end,
                                                  int lane) {
    std::int32_t row = -1;
    if (lane < positions && first + lane < end)
      row = (*page_ * pages.num_kv_heads + pages.kv_head) * pages.page_size + offset_;
    page_ += pages_of_round_;
    offset_ += rest_of_round_;
    if (offset_ >= pages.page_size) {
      offset_ -= pages.page_size;
      ++page_;
    }
    return row;
  }

  const std::int32_t* page_;  // with offset_, a lane's position in the next look_up()
  std::int32_t offset_, pages_of_round_, rest_of_round_;
  std::int32_t row_, next_row_;
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
  static constexpr int kLeastTiles = 4 * kWarps;         // of a part: merging smaller ones takes longer than they save
  static constexpr int kExtraTiles = 1;                  // beyond such parts: from so many on they get one of their own
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
  __device__ __forceinline__ void begin(const Pages<T>& pages, std::int32_t first, std::int32_t end, int lane) {
    rows_.begin(pages, first, end, lane);
  }
  // Begins to load positions [first, first + kPositions); zeros at and past `end`.
  __device__ __forceinline__ void load(const Pages<T>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    load_rows<T, dim, kPositions>(pages, rows_.row(), keys_ + stage * kTile, values_ + stage * kTile, lane);
    rows_.advance(pages, first, end, lane);
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
  RowsAhead<kPositions, kRound> rows_;
  Softmax<dim> softmax_[1];
};

}  // namespace minisgl::cuda
