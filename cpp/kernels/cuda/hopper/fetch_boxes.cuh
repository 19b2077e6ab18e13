// The producers of prefill where pages arrive as boxes: a warp that deals tiles, one that fetches queries and keys, one
// that fetches values, and one that takes out of the values what may not reach the products.
#pragma once

#include "kernels/cuda/hopper/fetch_tiles.cuh"
#include "kernels/cuda/hopper/tensor_map.cuh"
#include "kernels/cuda/hopper/tile_order.cuh"

namespace minisgl::cuda::hopper {

// A stage is a sequence of 8 positions' tiles, those of the same positions beside each other: so a box of whole rows
// fills it in one piece.
template <typename T, int dim>
struct BoxShape {
  static constexpr bool kHoldsQueries = dim <= 128;  // consumers keep them in registers
  static constexpr int kPositions = dim > 128 ? 64 : 128;
  static constexpr int kStages = dim > 128 ? 2 : kMostStages;
  static constexpr int kTiles = dim / kTileColumns;
  static constexpr int kColumnStride = 8 * kTileRowBytes;    // from 64 columns to the next
  static constexpr int kRowStride = kTiles * kColumnStride;  // from 8 positions to the next
  static constexpr int kStageBytes = kPositions / 8 * kRowStride;
  static constexpr int kQueryStride = kQueries * kTileRowBytes;  // from 64 columns of all queries to the next
  static constexpr int kQueryBytes = kTiles * kQueryStride;
  static constexpr int kBytes = kQueryBytes + 2 * kStages * kStageBytes + 1024;
  static constexpr int kWarps = kConsumers * kGroup / 32;  // of consumers
  using Turns = Turn<kStages>;
};

constexpr int kDealt = 2;  // tiles in sight: the one that is computed and the one that is fetched

template <int stages>
struct BoxBarriers {
  Barrier full_keys[stages], full_values[stages];
  Barrier empty_keys[stages], empty_values[stages];
  Barrier raw_values[stages];  // fetched, but some row doesn't see all of them
  Barrier full_queries, empty_queries;
  Barrier dealt[kDealt], done[kDealt];
  Barrier ticket_wanted;
  PrefillTile tiles[kDealt];
  bool has_non_finite[kDealt];
  float never_written;
  std::int32_t tiles_before[kMostTicketed + 1];

  // Called by one thread. A tile is done when the consumers' warps and the three others that read it are.
  __device__ void init(int consumer_warps) {
    for (int stage = 0; stage < stages; ++stage) {
      full_keys[stage].init(1);
      full_values[stage].init(1);
      raw_values[stage].init(1);
      empty_keys[stage].init(consumer_warps);
      empty_values[stage].init(consumer_warps);
    }
    full_queries.init(1);
    empty_queries.init(consumer_warps);
    for (int i = 0; i < kDealt; ++i) {
      dealt[i].init(1);
      done[i].init(consumer_warps + 3);
    }
    ticket_wanted.init(1);
    publish_to_products();
  }
};

struct BoxArgs {
  AttentionArgs attention;
  int box_rows;    // a multiple of 8 that divides a page and a tile's positions
  int query_rows;  // of a box of queries: no tile has more
};

// Calls visit(tile, its place among the dealt) for every tile of this block; by a whole warp that reads them.
template <int stages, typename Visit>
__device__ __forceinline__ void for_each_tile(BoxBarriers<stages>& barriers, const Visit& visit) {
  for (Turn<kDealt> turn;; turn.advance()) {
    barriers.dealt[turn.stage].wait(turn.parity);
    const PrefillTile tile = barriers.tiles[turn.stage];
    if (tile.num_queries == 0) return;
    visit(tile, turn.stage);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barriers.done[turn.stage].arrive();
  }
}

// A ticket is taken when a tile's last but one keys are under way: late, so that blocks end together, and early enough.
template <typename S>
__device__ __forceinline__ void deal_tiles(const BoxArgs& args, BoxBarriers<S::kStages>& barriers) {
  const int lane = threadIdx.x % 32;
  Tickets* tickets = args.attention.tickets;
  const TileOrder order(args.attention, kQueries, barriers.tiles_before);
  auto ticket = static_cast<std::int32_t>(blockIdx.x);
  Turn<1> wanted;
  for (Turn<kDealt> turn;; turn.advance()) {
    const PrefillTile tile = order.tile_of(ticket, args.attention.fixed_tiles ? S::kPositions : args.box_rows);
    barriers.done[turn.stage].wait(turn.parity ^ 1);
    if (lane == 0) {
      barriers.tiles[turn.stage] = tile;
      barriers.has_non_finite[turn.stage] = false;
      barriers.dealt[turn.stage].arrive();
    }
    if (tile.num_queries == 0) break;
    barriers.ticket_wanted.wait(wanted.parity);
    wanted.advance();
    wait_for_previous();  // the kernel before may be the one whose tickets end
    if (lane == 0) ticket = static_cast<std::int32_t>(gridDim.x + atomicAdd(&tickets->taken, 1u));
    ticket = __shfl_sync(0xffffffffu, ticket, 0);
  }
  wait_for_previous();
  if (lane == 0 && atomicAdd(&tickets->finished, 1u) == gridDim.x - 1) *tickets = {};  // nobody takes one any more
}

// Fetches a tile's queries, whole rows of them.
template <typename S>
__device__ __forceinline__ void fetch_queries(const CUtensorMap& map, const PrefillTile& tile, int rows,
                                              unsigned char* queries, Barrier& full) {
  arrive_expecting(full, rows * tile.group * S::kTiles * kTileRowBytes);
#pragma unroll
  for (int c = 0; c < S::kTiles; ++c) {
    copy_box(shared_address(queries) + c * S::kQueryStride, map,
             {c * kTileColumns, tile.kv_head * tile.group, tile.sequence.first_row + tile.first_query / tile.group, 0},
             full);
  }
}

// Fetches the keys of a tile, or its values: a lane looks up a box for the one that fetches. before(first) is called by
// the warp, full(first, stage) is the barrier that counts; then(first) is called by that lane.
template <typename S, typename Before, typename Full, typename Then>
__device__ __forceinline__ void fetch_pages(const BoxArgs& args, const CUtensorMap& map, const PrefillTile& tile,
                                            unsigned char* stages, Barrier* empty, bool elected,
                                            typename S::Turns& turn, const Before& before, const Full& full,
                                            const Then& then) {
  const int lane = threadIdx.x % 32, box_rows = args.box_rows;
  const ops::KvLayer& cache = args.attention.cache;
  const std::int32_t* table = args.attention.step.pages + tile.sequence.first_page;
  const auto look_up = [&](std::int32_t first) {  // which 8 rows of the cache
    const std::int32_t position = first + lane * box_rows;
    if (lane * box_rows >= S::kPositions || position >= tile.end) return 0;
    const auto page = static_cast<unsigned>(position) / static_cast<unsigned>(cache.page_size);
    return ((table[page] * cache.num_kv_heads + tile.kv_head) * cache.page_size +
            (position - static_cast<int>(page) * cache.page_size)) /
           8;
  };
  const std::uint32_t box_bytes = static_cast<std::uint32_t>(box_rows) * S::kTiles * kTileRowBytes;
  std::int32_t next_rows = look_up(tile.begin);
  for (std::int32_t first = tile.begin; first < tile.end; first += S::kPositions, turn.advance()) {
    const std::int32_t own_rows = next_rows;
    next_rows = look_up(first + S::kPositions);
    const int boxes = (min(S::kPositions, tile.end - first) + box_rows - 1) / box_rows;
    before(first);
    empty[turn.stage].wait(turn.parity ^ 1);
    Barrier& barrier = full(first, turn.stage);
    if (elected) arrive_expecting(barrier, boxes * box_bytes);
    std::uint32_t to = shared_address(stages) + turn.stage * S::kStageBytes;
#pragma unroll 4
    for (int i = 0; i < boxes; ++i, to += box_bytes) {
      const std::int32_t rows = __shfl_sync(0xffffffffu, own_rows, i);
      if (elected) copy_box(to, map, {0, 0, 0, rows}, barrier);
    }
    if (elected) then(first);
  }
}

// Positions before a sequence's only row were written by earlier steps: they need not wait for this step's kernels.
// (Those before several rows may be another sequence's, of this step.)
template <typename S>
__device__ __forceinline__ bool is_of_earlier_steps(const PrefillTile& tile, std::int32_t first) {
  return tile.sequence.num_rows == 1 && first + S::kPositions <= tile.sequence.start_position;
}

template <typename S>
__device__ __forceinline__ void fetch_all_keys(const BoxArgs& args, const CUtensorMap& query_map,
                                               const CUtensorMap& key_map, unsigned char* queries, unsigned char* keys,
                                               BoxBarriers<S::kStages>& barriers) {
  const bool elected = elect_lane();
  typename S::Turns turn;
  Turn<1> query_turn;
  bool has_waited = false;
  for_each_tile(barriers, [&](const PrefillTile& tile, int) {
    bool has_queries = false;
    const auto get_queries = [&] {
      wait_for_previous();
      has_waited = has_queries = true;
      barriers.empty_queries.wait(query_turn.parity ^ 1);
      query_turn.advance();
      if (elected) fetch_queries<S>(query_map, tile, args.query_rows, queries, barriers.full_queries);
    };
    if (has_waited) get_queries();
    fetch_pages<S>(
        args, key_map, tile, keys, barriers.empty_keys, elected, turn,
        [&](std::int32_t first) {  // of the first tile as many keys as there are stages for come before the queries
          const bool has_room = first < tile.begin + S::kStages * S::kPositions;
          if (!has_queries && !(has_room && is_of_earlier_steps<S>(tile, first))) get_queries();
        },
        [&](std::int32_t, int stage) -> Barrier& { return barriers.full_keys[stage]; },
        [&](std::int32_t first) {
          const std::int32_t left = tile.end - first;
          if (left <= 2 * S::kPositions && (left > S::kPositions || first == tile.begin))
            barriers.ticket_wanted.arrive();
        });
  });
}

template <typename S>
__device__ __forceinline__ void fetch_all_values(const BoxArgs& args, const CUtensorMap& value_map,
                                                 unsigned char* values, BoxBarriers<S::kStages>& barriers) {
  const bool elected = elect_lane();
  typename S::Turns turn;
  bool has_waited = false;
  for_each_tile(barriers, [&](const PrefillTile& tile, int) {
    fetch_pages<S>(
        args, value_map, tile, values, barriers.empty_values, elected, turn,
        [&](std::int32_t first) {
          if (has_waited || is_of_earlier_steps<S>(tile, first)) return;
          wait_for_previous();
          has_waited = true;
        },
        [&](std::int32_t first, int stage) -> Barrier& {
          return tile.masks(first, S::kPositions) ? barriers.raw_values[stage] : barriers.full_values[stage];
        },
        [](std::int32_t) {});
  });
}

// Eight positions of a stage, from `first` on. Whether something wasn't finite.
template <typename T, typename S>
__device__ __forceinline__ bool clean_rows(const PrefillTile& tile, std::int32_t first, unsigned char* rows) {
  constexpr int kChunks = 8 * S::kTiles, kOwn = 8 * kChunks / 32, kAtOnce = 2;
  const int lane = threadIdx.x % 32;
  bool any = false;
#pragma unroll
  for (int k = 0; k < kOwn; k += kAtOnce) {
    unsigned char* places[kAtOnce];
    uint4 loaded[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int i = 32 * (k + n) + lane, row = i / kChunks, chunk = i % kChunks;
      places[n] = rows + chunk / 8 * S::kColumnStride + row * kTileRowBytes + (chunk % 8 ^ row) * 16;
      loaded[n] = *reinterpret_cast<const uint4*>(places[n]);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const std::int32_t position = first + (32 * (k + n) + lane) / kChunks;
      if (position >= tile.end) {
        *reinterpret_cast<uint4*>(places[n]) = {};
      } else if (!tile.all_see(position)) {
        any = clear_non_finite<T>(places[n], loaded[n]) || any;
      }
    }
  }
  return any;
}

// What isn't finite of values that some row doesn't see becomes 0, and all at or past the end, which was not fetched.
template <typename T, typename S>
__device__ __forceinline__ void clean_values(unsigned char* values, BoxBarriers<S::kStages>& barriers) {
  typename S::Turns turn;
  unsigned raw_parities = 0;  // a bit for each stage
  for_each_tile(barriers, [&](const PrefillTile& tile, int dealt) {
    for (std::int32_t first = tile.begin; first < tile.end; first += S::kPositions, turn.advance()) {
      if (!tile.masks(first, S::kPositions)) continue;
      const int stage = turn.stage;
      barriers.raw_values[stage].wait(raw_parities >> stage & 1);
      raw_parities ^= 1u << stage;
      bool any = false;
      for (int i = 0; i < S::kPositions; i += 8) {
        if (tile.all_see(first + i) && tile.all_see(first + i + 7)) continue;
        any = clean_rows<T, S>(tile, first + i, values + stage * S::kStageBytes + i / 8 * S::kRowStride) || any;
      }
      if (any) barriers.has_non_finite[dealt] = true;
      publish_to_products();
      __syncwarp();
      if (threadIdx.x % 32 == 0) barriers.full_values[stage].arrive();
    }
  });
}

}  // namespace minisgl::cuda::hopper
