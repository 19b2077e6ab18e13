// Prefill on compute capability 9.0a, after FlashAttention 3 (Shah et al., 2024): one warpgroup fetches keys and values
// from the pages, two others take 64 queries each. The products of one run while the other is at its softmax, and the
// scores of a tile while the values of the tile before are weighed.
//
// Floor, head 128: a tile of 128 positions takes a warpgroup 1024 cycles of the tensor cores (1024 multiply-adds a
// cycle) and, besides, 512 of the exponentials (16 a cycle) and about 350 issue slots. Tiles come from the second-level
// cache.
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/prefill_tile.cuh"

namespace minisgl::cuda::hopper {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kConsumers = 2;
constexpr int kGroupQueries = 64;
constexpr int kQueries = kConsumers * kGroupQueries;
constexpr int kMostStages = 3;

template <int dim>
struct Shape {
  static constexpr int kPositions = dim > 128 ? 64 : 128;
  static constexpr int kStages = dim > 128 ? 2 : kMostStages;
  static constexpr int kTiles = (dim + kTileColumns - 1) / kTileColumns;  // tiles that lie beside each other
  static constexpr int kColumnStride = kPositions * kTileRowBytes;        // from one of them to the next
  static constexpr int kStageBytes = kTiles * kColumnStride;              // keys or values
  static constexpr int kQueryStride = kGroupQueries * kTileRowBytes;      // the same for queries
  static constexpr int kQueryBytes = kTiles * kQueryStride;               // a warpgroup's
  static constexpr int kBytes = kConsumers * kQueryBytes + 2 * kStages * kStageBytes + 1024;
};

struct Barriers {
  Barrier full_keys[kMostStages], full_values[kMostStages];    // a stage holds a tile
  Barrier empty_keys[kMostStages], empty_values[kMostStages];  // a stage is read no more
  bool has_non_finite;
  float never_written;
};

// The stage whose turn it is, and the parity of the phase in which its barriers are.
template <int stages>
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The producer: each warp fetches a quarter of a tile's positions, a lane looks up one of them for the others. Eight
// lanes copy 64 columns of a row.
template <typename T, int dim>
__device__ __forceinline__ void fetch_tiles(const Pages<T>& pages, const PrefillTile& tile, unsigned char* keys,
                                            unsigned char* values, Barriers& barriers) {
  using S = Shape<dim>;
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
    copy(own_row, pages.keys, keys + stage * S::kStageBytes);
    barriers.full_keys[stage].arrive_after_copies();
    barriers.empty_values[stage].wait(turn.parity ^ 1);
    unsigned char* stage_values = values + stage * S::kStageBytes;
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

// A consumer: 64 queries from `query` on, in shared memory at `queries`.
template <typename T, int dim>
__device__ __forceinline__ void attend(const AttentionArgs& args, const Pages<T>& pages, const PrefillTile& tile,
                                       int consumer, unsigned char* queries, const unsigned char* keys,
                                       const unsigned char* values, Barriers& barriers) {
  using S = Shape<dim>;
  const int thread = threadIdx.x % kGroup, lane = thread % 32;
  const int group_query = consumer * kGroupQueries;
  constexpr int kOwnChunks = kGroupQueries * (dim / 8) / kGroup, kAtOnce = kOwnChunks > 8 ? 8 : kOwnChunks;
  for (int from = 0; from < kOwnChunks; from += kAtOnce) {  // several loads before the first store
    uint4 loaded[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = (from + k) * kGroup + thread;
      loaded[k] = query_chunk<T>(args, tile, group_query + i / (dim / 8), i % (dim / 8) * 8);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = (from + k) * kGroup + thread, row = i / (dim / 8), chunk = i % (dim / 8);
      *reinterpret_cast<uint4*>(queries + chunk / 8 * S::kQueryStride + row * kTileRowBytes +
                                (chunk % 8 ^ row % 8) * 16) = loaded[k];
    }
  }
  publish_to_products();
  constexpr int kOwnBarrier = 1;  // 1 and 2: a warpgroup's turn; 3 and 4: within a warpgroup
  sync_threads(3 + consumer, kGroup);

  const int query = group_query + thread / 32 * 16 + lane / 4;
  const Visible visible = tile.visible_to_lane(query);
  const float scale_log2 = args.scale * kLog2E;
  const std::uint32_t queries_at = shared_address(queries), keys_at = shared_address(keys),
                      values_at = shared_address(values);

  float score[S::kPositions / 8][4];
  std::uint32_t weights[S::kPositions / 16][4];
  Softmax<dim> softmax;
  softmax.clear();
  float shrink[2];

  const auto begin_scores = [&](int stage) {
    const std::uint32_t stage_at = keys_at + stage * S::kStageBytes;
    touch(score);
    begin_products();
#pragma unroll
    for (int k = 0; k < dim / 16; ++k) {  // 16 columns are 32 bytes
      const int c = k / 4, within = k % 4 * 32;
      Product<T, S::kPositions>::shared(score, tile_descriptor(queries_at + c * S::kQueryStride + within, 16),
                                        tile_descriptor(stage_at + c * S::kColumnStride + within, 16), k > 0);
    }
    commit_products();
  };
  const auto begin_values = [&](int stage) {
    const std::uint32_t stage_at = values_at + stage * S::kStageBytes;
    touch(softmax.acc);
    begin_products();
#pragma unroll
    for (int k = 0; k < S::kPositions / 16; ++k) {
      Product<T, dim>::registers(softmax.acc, weights[k],
                                 tile_descriptor(stage_at + k * 16 * kTileRowBytes, S::kColumnStride), 1);
    }
    commit_products();
  };
  const auto weigh_scores = [&](std::int32_t first) {
    weigh<S::kPositions>(score, first, visible, tile.masks(first, S::kPositions), scale_log2, softmax.max, softmax.sum,
                         shrink);
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int k = 0; k < S::kPositions / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = pack2<T>(score[2 * k + i / 2][i % 2 * 2], score[2 * k + i / 2][i % 2 * 2 + 1]);
    }
  };
  const auto release = [&](Barrier& barrier) {
    if (lane == 0) barrier.arrive();
  };

  if (consumer == 1) arrive_at(kOwnBarrier, kConsumers * kGroup);  // the first turn is the first warpgroup's
  Turn<S::kStages> turn, before;                                   // this tile's and the one before's
  barriers.full_keys[turn.stage].wait(turn.parity);
  publish_to_products();
  begin_scores(turn.stage);
  wait_products<0>();
  touch(score);
  release(barriers.empty_keys[turn.stage]);
  weigh_scores(tile.begin);
  pack_weights();
  turn.advance();
  for (std::int32_t first = tile.begin + S::kPositions; first < tile.end; first += S::kPositions) {
    barriers.full_keys[turn.stage].wait(turn.parity);
    barriers.full_values[before.stage].wait(before.parity);
    publish_to_products();
    sync_threads(kOwnBarrier + consumer, kConsumers * kGroup);
    begin_scores(turn.stage);
    begin_values(before.stage);
    if (consumer == 0 || first + S::kPositions < tile.end) arrive_at(kOwnBarrier + 1 - consumer, kConsumers * kGroup);
    wait_products<1>();
    touch(score);
    release(barriers.empty_keys[turn.stage]);
    weigh_scores(first);
    compute_before_next_wait(softmax.sum[0] + softmax.sum[1], &barriers.never_written);
    wait_products<0>();
    touch(softmax.acc);
    release(barriers.empty_values[before.stage]);
    softmax.scale(shrink);
    pack_weights();
    before = turn;
    turn.advance();
  }
  barriers.full_values[before.stage].wait(before.parity);
  publish_to_products();
  begin_values(before.stage);
  wait_products<0>();
  touch(softmax.acc);

  finish_sums(softmax);
  if (barriers.has_non_finite) add_non_finite<T, dim>(pages, tile, visible, S::kPositions, softmax.acc);
  store_answers(args, tile, query, softmax);
}

template <typename T, int dim>
__global__ void __launch_bounds__((1 + kConsumers) * kGroup, 1) prefill_kernel(const AttentionArgs args) {
  using S = Shape<dim>;
  let_next_start();
  wait_for_previous();
  const PrefillTile tile = prefill_tile(args, kQueries);
  if (tile.num_queries == 0) return;

  extern __shared__ unsigned char unaligned[];
  __shared__ Barriers barriers;
  unsigned char* queries = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  unsigned char* keys = queries + kConsumers * S::kQueryBytes;
  unsigned char* values = keys + S::kStages * S::kStageBytes;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barriers.full_keys[stage].init(kGroup);
      barriers.full_values[stage].init(kGroup);
      barriers.empty_keys[stage].init(kConsumers * kGroup / 32);
      barriers.empty_values[stage].init(kConsumers * kGroup / 32);
    }
    barriers.has_non_finite = false;
  }
  __syncthreads();
  const Pages<T> pages = pages_of<T>(args, tile.sequence, tile.kv_head);
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kGroup, 0);  // the compiler sees: all of a warp agree
  if (warpgroup == 0) {
    shrink_registers_to<56>();
    fetch_tiles<T, dim>(pages, tile, keys, values, barriers);
  } else {
    grow_registers_to<224>();
    const int consumer = warpgroup - 1;
    attend<T, dim>(args, pages, tile, consumer, queries + consumer * S::kQueryBytes, keys, values, barriers);
  }
}

}  // namespace minisgl::cuda::hopper

namespace minisgl::cuda {

template <typename T, int dim>
bool hopper_prefill_attention(const AttentionArgs& args, cudaStream_t stream) {
  static const bool is_hopper = [] {
    int device = 0, major = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major == 9;
  }();
  if (!is_hopper) return false;
  constexpr int bytes = hopper::Shape<dim>::kBytes;
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(hopper::prefill_kernel<T, dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_kernel(hopper::prefill_kernel<T, dim>, prefill_grid(args, hopper::kQueries),
                (1 + hopper::kConsumers) * hopper::kGroup, bytes, stream, args);
  return true;
}

}  // namespace minisgl::cuda
