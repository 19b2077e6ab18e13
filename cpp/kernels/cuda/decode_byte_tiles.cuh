// A warp's tiles of the decode kernel where the cache holds bytes.
#pragma once

#include "kernels/cuda/decode_byte_softmax.cuh"
#include "kernels/cuda/decode_tiles.cuh"

namespace minisgl::cuda {

template <int dim_, int queries_, int positions>
struct ByteShape {
  static constexpr int dim = dim_, queries = queries_, kPositions = positions;
};

// Keys, and then the columns of values, are the rows of the products, and eight queries are their columns: queries as
// rows would take twice as many products where a KV head has at most eight.
template <int dim, int queries>
class DecodeTiles<e4m3, dim, queries> {
  static_assert(dim % 64 == 0 && queries % 8 == 0);
  using Tile = ByteTile<dim>;
  static constexpr int kChunks = Tile::kChunks;

 public:
  using Product = half;
  static constexpr int kWarps = 4;
  static constexpr int kPositions = dim > 128 ? 16 : 32;
  static constexpr int kRound = kWarps * kPositions;
  static constexpr int kLeastRounds = 256 / kRound;
  static constexpr bool kEvenParts = true;  // to a tile
  static constexpr int kLeastResident = dim > 64 ? 3 : 4;
  static constexpr int kTile = kPositions * dim;
  static constexpr int kStage = 2 * kTile + 2 * kPositions * 4;  // keys, values, keys' scales, values' scales
  static constexpr int kBytes = 2 * kStage;
  static_assert(kBytes % 128 == 0);

  // The memory begins at a multiple of 128 bytes.
  __device__ explicit DecodeTiles(unsigned char* memory) : start_(shared_address(memory)) {
    const int lane = threadIdx.x % 32;
    copy_at_ = start_ + Tile::place(lane / kChunks, lane % kChunks);
    keep(start_, copy_at_);
    softmax_.clear();
  }

  // Columns are exchanged as the softmax takes them.
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

  // Where a tile's rows lie is looked up two tiles ahead.
  __device__ __forceinline__ void begin(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int lane) {
    keys_ = pages.keys + lane % kChunks * 16;
    values_ = pages.values + lane % kChunks * 16;
    const int page = (first + lane) / pages.page_size;
    page_ = pages.table + page;
    offset_ = first + lane - page * pages.page_size;
    pages_of_round_ = kRound / pages.page_size;
    rest_of_round_ = kRound % pages.page_size;
    keep(keys_, values_, pages_of_round_, rest_of_round_);
    row_ = look_up(pages, first, end, lane);
    next_row_ = look_up(pages, first + kRound, end, lane);
  }
  __device__ __forceinline__ void load(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int stage,
                                       int lane) {
    constexpr int kRows = 32 / kChunks;  // that a turn copies
    const std::uint32_t to = copy_at_ + stage * kStage;
    const bool inside = lane % kChunks * 16 < pages.head_dim;
#pragma unroll
    for (int i = 0; i < kPositions / kRows; ++i) {
      const std::int32_t row = __shfl_sync(0xffffffffu, row_, i * kRows + lane / kChunks);
      const std::int64_t from = std::int64_t{row} * pages.head_dim;
      copy_16_async(Tile::below(to, i * kRows), keys_ + from, inside && row >= 0);
      copy_16_async(Tile::below(to, i * kRows) + kTile, values_ + from, inside && row >= 0);
    }
    if (lane < kPositions) {
      const std::uint32_t scales = start_ + stage * kStage + 2 * kTile + 4 * lane;
      copy_4_async(scales, pages.key_scales + row_, row_ >= 0);
      copy_4_async(scales + 4 * kPositions, pages.value_scales + row_, row_ >= 0);
    }
    row_ = next_row_;
    next_row_ = look_up(pages, first + 2 * kRound, end, lane);
  }

  __device__ __forceinline__ void fold(const half* query_rows, std::int32_t first, int stage, std::int32_t begin,
                                       std::int32_t end, bool, float scale_log2) {
    const int lane = threadIdx.x % 32;
    const auto find_queries = [&](int block, int two, std::uint32_t (&query)[queries / 8][4]) {
#pragma unroll
      for (int n = 0; n < queries / 8; ++n)
        ldmatrix_x4(query[n], query_rows + (8 * n + lane % 8) * kStride<dim> + 64 * block + 32 * two + lane / 8 * 8);
    };
    softmax_.fold(start_ + stage * kStage, find_queries, first, begin, end, scale_log2);
  }
  __device__ void finish() {}
  __device__ __forceinline__ void put(int, const WarpShare& to) {
    softmax_.put(to.max, to.sum, [&](int query, int column, float2 pair) {
      *reinterpret_cast<float2*>(to.acc + query * dim + column) = pair;
    });
  }

 private:
  // The row of a lane's position of the tile from `first` on, -1 at and past `end`; tiles in turn, each once.
  __device__ __forceinline__ std::int32_t look_up(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end,
                                                  int lane) {
    std::int32_t row = -1;
    if (lane < kPositions && first + lane < end)
      row = (*page_ * pages.num_kv_heads + pages.kv_head) * pages.page_size + offset_;
    page_ += pages_of_round_;
    offset_ += rest_of_round_;
    if (offset_ >= pages.page_size) {
      offset_ -= pages.page_size;
      ++page_;
    }
    return row;
  }

  std::uint32_t start_;         // in shared memory
  std::uint32_t copy_at_;       // this lane's place in the first stage
  const e4m3 *keys_, *values_;  // this lane's chunks of row 0
  const std::int32_t* page_;    // with offset_, a lane's position in the next look_up()
  std::int32_t offset_, pages_of_round_, rest_of_round_;
  std::int32_t row_, next_row_;  // this lane's in the next two tiles
  ByteSoftmax<ByteShape<dim, queries, kPositions>> softmax_;
};

}  // namespace minisgl::cuda
