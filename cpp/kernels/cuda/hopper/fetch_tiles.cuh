// The producers of prefill on compute capability 9.0a: how keys and values come from the pages to shared memory, as the
// products take them.
#pragma once

#include "core/cuda/wgmma.cuh"
#include "kernels/cuda/prefill_tile.cuh"

namespace minisgl::cuda::hopper {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kConsumers = 2;
constexpr int kGroupQueries = 64;
constexpr int kQueries = kConsumers * kGroupQueries;
constexpr int kMostStages = 3;

template <typename T, int dim>
struct Shape {
  static constexpr bool kWidens = sizeof(T) == 1;  // bytes of the cache become f16 in the stages
  static constexpr int kPositions = dim > 128 ? 64 : 128;
  static constexpr int kStages = dim > 128 || kWidens ? 2 : kMostStages;
  static constexpr int kTiles = (dim + kTileColumns - 1) / kTileColumns;  // tiles that lie beside each other
  static constexpr int kColumnStride = kPositions * kTileRowBytes;        // from one of them to the next
  static constexpr int kStageBytes = kTiles * kColumnStride;              // keys or values
  static constexpr int kQueryStride = kGroupQueries * kTileRowBytes;      // the same for queries
  static constexpr int kQueryBytes = kTiles * kQueryStride;               // a warpgroup's
  static constexpr int kFetchBytes = kWidens ? 2 * kPositions * dim : 0;  // a tile of bytes
  static constexpr int kBytes = kConsumers * kQueryBytes + 2 * kStages * kStageBytes + kFetchBytes + 1024;
};

struct Barriers {
  Barrier full_keys[kMostStages], full_values[kMostStages];    // a stage holds a tile
  Barrier empty_keys[kMostStages], empty_values[kMostStages];  // a stage is read no more
  bool has_non_finite;
  float never_written;
};

// In shared memory: stages of keys and of values, and where a tile of bytes waits to become f16.
struct TileMemory {
  unsigned char *keys, *values, *bytes;
};

// The producer: each warp fetches a quarter of a tile's positions, a lane looks up one of them for the others. Eight
// lanes copy 64 columns of a row.
template <typename T, int dim>
__device__ __forceinline__ void fetch_tiles(const Pages<T>& pages, const PrefillTile& tile, const TileMemory& memory,
                                            Barriers& barriers) {
  using S = Shape<T, dim>;
  constexpr int kShare = S::kPositions / (kGroup / 32), kRowsAtOnce = 32 / 8;
  const int warp = threadIdx.x % kGroup / 32, lane = threadIdx.x % 32, chunk = lane % 8;
  const auto look_up = [&](std::int32_t first) {  // -1: none
    const std::int32_t position = first + warp * kShare + lane % kShare;
    const std::int32_t found = pages.row_of(min(position, tile.end - 1));
    return position < tile.end ? found : -1;
  };
  // visit(place in the tile, place in the cache or -1) for each 16 bytes of this thread.
  const auto for_each_chunk = [&](std::int32_t own_row, const auto& visit) {
#pragma unroll
    for (int i = 0; i < kShare / kRowsAtOnce; ++i) {
      const int share_row = kRowsAtOnce * i + lane / 8, row = warp * kShare + share_row;
      const std::int32_t cache_row = __shfl_sync(0xffffffffu, own_row, share_row);
#pragma unroll
      for (int c = 0; c < S::kTiles; ++c) {
        const int column = c * kTileColumns + chunk * 8;
        if (column >= dim) continue;
        const bool valid = cache_row >= 0 && column < pages.head_dim;
        visit(c * S::kColumnStride + row * kTileRowBytes + (chunk ^ row % 8) * 16,
              valid ? std::int64_t{cache_row} * pages.head_dim + column : -1);
      }
    }
  };
  const auto copy = [&](std::int32_t own_row, const T* from, unsigned char* to) {
    for_each_chunk(own_row, [&](int place, std::int64_t offset) {
      copy_16_async(to + place, from + (offset >= 0 ? offset : 0), offset >= 0);
    });
  };
  Turn<S::kStages> turn;
  std::int32_t next_row = look_up(tile.begin);
  for (std::int32_t first = tile.begin; first < tile.end; first += S::kPositions, turn.advance()) {
    const int stage = turn.stage;
    const std::int32_t own_row = next_row;
    next_row = look_up(first + S::kPositions);
    barriers.empty_keys[stage].wait(turn.parity ^ 1);
    copy(own_row, pages.keys, memory.keys + stage * S::kStageBytes);
    barriers.full_keys[stage].arrive_after_copies();
    barriers.empty_values[stage].wait(turn.parity ^ 1);
    unsigned char* stage_values = memory.values + stage * S::kStageBytes;
    copy(own_row, pages.values, stage_values);
    if (!tile.masks(first, S::kPositions)) {
      barriers.full_values[stage].arrive_after_copies();
      continue;
    }
    commit_copies();
    wait_copies<0>();
    bool any = false;
    for_each_chunk(own_row, [&](int place, std::int64_t) { any = clear_non_finite<T>(stage_values + place) || any; });
    if (any) barriers.has_non_finite = true;
    barriers.full_values[stage].arrive();
  }
}

// The producer for bytes: a thread fetches 16 columns of a row, makes f16 of them and puts them where products take
// them; four lanes do so for 64 columns. The bytes of the next tile are under way while a tile waits for its stage.
//
// Floor, head 128: 34 issue slots for 16 bytes, 544 for a warp's share of a tile of 128 positions, beside the 2048
// cycles that both consumers' products take.
template <typename T, int dim>
  requires(Shape<T, dim>::kWidens)
__device__ __forceinline__ void fetch_tiles(const Pages<T>& pages, const PrefillTile& tile, const TileMemory& memory,
                                            Barriers& barriers) {
  using S = Shape<T, dim>;
  constexpr int kShare = S::kPositions / (kGroup / 32), kRowsAtOnce = 32 / 4;
  constexpr int kTileBytes = S::kPositions * dim;
  const int thread = threadIdx.x % kGroup, warp = thread / 32, lane = thread % 32, chunk = lane % 4;
  unsigned char* own_bytes = memory.bytes + thread * 16;  // every kGroup * 16

  struct Row {
    std::int32_t place;  // in the cache, -1: none
    float key_scale, value_scale;
  };
  const auto look_up = [&](std::int32_t first) -> Row {
    const std::int32_t position = first + warp * kShare + lane % kShare;
    const std::int32_t place = position < tile.end ? pages.row_of(position) : -1;
    if (place < 0) return {-1, 0.0f, 0.0f};
    return {place, pages.key_scales[place], pages.value_scales[place]};
  };
  const auto fetch = [&](std::int32_t own_place, const T* from, unsigned char* to) {
#pragma unroll
    for (int i = 0; i < kShare / kRowsAtOnce; ++i) {
      const std::int32_t place = __shfl_sync(0xffffffffu, own_place, kRowsAtOnce * i + lane / 4);
#pragma unroll
      for (int c = 0; c < S::kTiles; ++c, to += kGroup * 16) {
        const int column = c * kTileColumns + chunk * 16;
        const bool valid = place >= 0 && column < pages.head_dim;
        copy_16_async(to, from + (valid ? std::int64_t{place} * pages.head_dim + column : 0), valid);
      }
    }
    commit_copies();
  };
  // own_factor: of this lane's row.
  const auto put = [&](std::uint32_t own_factor, const unsigned char* from, unsigned char* to) {
#pragma unroll
    for (int i = 0; i < kShare / kRowsAtOnce; ++i) {
      const int share_row = kRowsAtOnce * i + lane / 4, row = warp * kShare + share_row;
      const std::uint32_t factor = __shfl_sync(0xffffffffu, own_factor, share_row);
#pragma unroll
      for (int c = 0; c < S::kTiles; ++c, from += kGroup * 16) {
        uint4 values[2];
        widen_chunk(*reinterpret_cast<const uint4*>(from), factor, values);
        unsigned char* row_at = to + c * S::kColumnStride + row * kTileRowBytes;
        *reinterpret_cast<uint4*>(row_at + (2 * chunk ^ row % 8) * 16) = values[0];
        *reinterpret_cast<uint4*>(row_at + (2 * chunk + 1 ^ row % 8) * 16) = values[1];
      }
    }
    publish_to_products();
  };

  Turn<S::kStages> key_turn, value_turn;
  const auto put_keys = [&](const Row& row) {
    const int stage = key_turn.stage;
    barriers.empty_keys[stage].wait(key_turn.parity ^ 1);
    put(row_factor(row.key_scale), own_bytes, memory.keys + stage * S::kStageBytes);
    barriers.full_keys[stage].arrive();
    key_turn.advance();
  };
  // Keys are one tile ahead of values: their stage is free earlier.
  Row own = look_up(tile.begin), next = look_up(tile.begin + S::kPositions);
  fetch(own.place, pages.keys, own_bytes);
  wait_copies<0>();
  put_keys(own);
  fetch(next.place, pages.keys, own_bytes);
  fetch(own.place, pages.values, own_bytes + kTileBytes);
  for (std::int32_t first = tile.begin; first < tile.end; first += S::kPositions, value_turn.advance()) {
    const Row after = look_up(first + 2 * S::kPositions);
    wait_copies<1>();
    if (first + S::kPositions < tile.end) put_keys(next);
    fetch(after.place, pages.keys, own_bytes);

    wait_copies<1>();
    const int stage = value_turn.stage;
    const bool kept = is_finite(own.value_scale) || !tile.masks(first, S::kPositions);
    if (!kept) barriers.has_non_finite = true;
    barriers.empty_values[stage].wait(value_turn.parity ^ 1);
    put(kept ? row_factor(own.value_scale) : 0, own_bytes + kTileBytes, memory.values + stage * S::kStageBytes);
    barriers.full_values[stage].arrive();
    fetch(next.place, pages.values, own_bytes + kTileBytes);
    own = next;
    next = after;
  }
  wait_copies<0>();
}

}  // namespace minisgl::cuda::hopper
