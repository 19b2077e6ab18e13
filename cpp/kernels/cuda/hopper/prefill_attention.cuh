// Prefill on compute capability 9.0a where pages don't arrive as boxes (box_prefill.cuh): one warpgroup fetches keys
// and values from the pages, two others take 64 queries each. The products of one run while the other is at its
// softmax, and the scores of a tile while the values of the tile before are weighed.
//
// Floor, head 128: a tile of 128 positions takes a warpgroup 1024 cycles of the tensor cores (1024 multiply-adds a
// cycle) and, besides, 512 of the exponentials (16 a cycle) and about 350 issue slots. Tiles come from the second-level
// cache.
#pragma once

#include "kernels/cuda/hopper/box_prefill.cuh"

namespace minisgl::cuda::hopper {

// A consumer: 64 queries from `query` on, in shared memory at `queries`.
template <typename T, int dim>
__device__ __forceinline__ void attend(const AttentionArgs& args, const Pages<T>& pages, const PrefillTile& tile,
                                       int consumer, unsigned char* queries, const unsigned char* keys,
                                       const unsigned char* values, Barriers& barriers) {
  using S = Shape<T, dim>;
  using Element = ProductType<T>;
  const int thread = threadIdx.x % kGroup, lane = thread % 32;
  const int group_query = consumer * kGroupQueries;
  constexpr int kOwnChunks = kGroupQueries * (dim / 8) / kGroup, kAtOnce = kOwnChunks > 8 ? 8 : kOwnChunks;
  for (int from = 0; from < kOwnChunks; from += kAtOnce) {  // several loads before the first store
    uint4 loaded[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = (from + k) * kGroup + thread;
      loaded[k] = query_chunk<Element>(args, tile, group_query + i / (dim / 8), i % (dim / 8) * 8);
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
      Product<Element, S::kPositions>::shared(score, tile_descriptor(queries_at + c * S::kQueryStride + within, 16),
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
      Product<Element, dim>::registers(softmax.acc, weights[k],
                                       tile_descriptor(stage_at + k * 16 * kTileRowBytes, S::kColumnStride), 1);
    }
    commit_products();
  };
  const auto weigh_scores = [&](std::int32_t first) {
    cap_scores(score, args.cap);
    weigh<S::kPositions>(score, first, visible, tile.masks(first, S::kPositions), scale_log2, softmax.max, softmax.sum,
                         shrink);
  };
  const auto pack_weights = [&] {
#pragma unroll
    for (int k = 0; k < S::kPositions / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = pack2<Element>(score[2 * k + i / 2][i % 2 * 2], score[2 * k + i / 2][i % 2 * 2 + 1]);
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
  using S = Shape<T, dim>;
  let_next_start();
  wait_for_previous();
  const PrefillTile tile = prefill_tile(args, kQueries, S::kPositions);
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
    fetch_tiles<T, dim>(pages, tile, {.keys = keys, .values = values, .bytes = values + S::kStages * S::kStageBytes},
                        barriers);
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
  if constexpr (hopper::kTakesBoxes<T, dim>) {
    if (hopper::arrive_as_boxes(args, dim)) {
      hopper::box_prefill_attention<T, dim>(args, stream);
      return true;
    }
  }
  constexpr int bytes = hopper::Shape<T, dim>::kBytes;
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(hopper::prefill_kernel<T, dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  launch_kernel(hopper::prefill_kernel<T, dim>, prefill_grid(args, hopper::kQueries),
                (1 + hopper::kConsumers) * hopper::kGroup, bytes, stream, args);
  return true;
}

}  // namespace minisgl::cuda
