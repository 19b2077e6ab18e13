// The order of prefill's tiles, for blocks that stay: a tile has a number, its ticket, and a block takes the next one.
#pragma once

#include "kernels/cuda/prefill_tile.cuh"

namespace minisgl::cuda::hopper {

constexpr int kMostTicketed = 256;  // sequences

// Sequences one after the other. Of a sequence the longest tiles come first, for as many KV heads at once as the
// second-level cache holds; then the tiles of the next heads. All lanes of a warp call its functions.
class TileOrder {
 public:
  // tiles_before: [kMostTicketed + 1] in shared memory.
  __device__ TileOrder(const AttentionArgs& args, int most_queries, std::int32_t* tiles_before)
      : args_(args),
        group_(args.shape.num_heads / args.shape.num_kv_heads),
        tile_rows_(most_queries / group_),
        tiles_before_(tiles_before) {
    const int lane = threadIdx.x % 32;
    std::int32_t total = 0;
    if (lane == 0) tiles_before_[0] = 0;
    constexpr int kAtOnce = 4;  // loads of a lane
    for (int from = 0; from < args_.step.num_prefills; from += 32 * kAtOnce) {
      std::int32_t rows[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = from + 32 * k + lane;
        rows[k] = i < args_.step.num_prefills ? args_.step.prefills[i] : -1;
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) rows[k] = rows[k] >= 0 ? args_.step.sequences[rows[k]].num_rows : 0;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = from + 32 * k + lane;
        std::int32_t sum = (rows[k] + tile_rows_ - 1) / tile_rows_;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
          const std::int32_t before = __shfl_up_sync(0xffffffffu, sum, distance);
          if (lane >= distance) sum += before;
        }
        if (i < args_.step.num_prefills) tiles_before_[i + 1] = total + sum;
        total += __shfl_sync(0xffffffffu, sum, 31);
      }
    }
    num_tickets_ = total * args_.shape.num_kv_heads;
    __syncwarp();
  }

  // A tile of whole rows, whose positions begin at a multiple of `alignment`; without queries where there are no more.
  __device__ PrefillTile tile_of(std::int32_t ticket, int alignment) const {
    PrefillTile tile{};
    if (ticket >= num_tickets_) return tile;
    const int num_kv_heads = args_.shape.num_kv_heads;
    int index = 0, past = args_.step.num_prefills;  // the sequence is one of [index, past)
    while (past - index > 1) {
      const int middle = (index + past) / 2;
      (tiles_before_[middle] * num_kv_heads <= ticket ? index : past) = middle;
    }
    tile.sequence = args_.step.sequences[args_.step.prefills[index]];
    const std::int32_t tiles = tiles_before_[index + 1] - tiles_before_[index];
    const std::int32_t within = ticket - tiles_before_[index] * num_kv_heads;
    const int heads = heads_at_once(tile.sequence.start_position + tile.sequence.num_rows);
    const std::int32_t round = within / (tiles * heads), in_round = within % (tiles * heads);
    tile.kv_head = round * heads + in_round % heads;
    tile.group = group_;
    tile.window = args_.window;
    tile.first_query = (tiles - 1 - in_round / heads) * tile_rows_ * group_;
    tile.num_queries = min(tile_rows_ * group_, tile.sequence.num_rows * group_ - tile.first_query);
    tile.see_positions();
    tile.begin -= tile.begin % alignment;
    return tile;
  }

 private:
  __device__ int heads_at_once(std::int32_t positions) const {
    constexpr std::int64_t kCachedBytes = 16 << 20;
    const std::int64_t head_bytes = std::int64_t{2 * 2} * args_.cache.head_dim * positions;
    int heads = args_.shape.num_kv_heads;
    while (heads % 2 == 0 && heads * head_bytes > kCachedBytes) heads /= 2;
    return heads * head_bytes > kCachedBytes ? 1 : heads;
  }

  const AttentionArgs& args_;
  const int group_, tile_rows_;
  std::int32_t* tiles_before_;
  std::int32_t num_tickets_;
};

}  // namespace minisgl::cuda::hopper
