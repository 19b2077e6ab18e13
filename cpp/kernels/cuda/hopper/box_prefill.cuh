// Prefill on compute capability 9.0a where pages arrive as boxes, after FlashAttention 3 (Shah et al., 2024): blocks
// stay and take tile after tile. Warps fetch ahead, also what the next tile needs; two warpgroups take 64 queries each.
// The products of one run while the other is at its softmax, and the scores of a tile while the values of the tile
// before are weighed.
//
// Floor, head 128: a tile of 128 positions takes a warpgroup 1024 cycles of the tensor cores (2048 multiply-adds a
// cycle) and, besides, 512 of the exponentials (16 a cycle) and about 500 issue slots. Tiles come from the second-level
// cache.
#pragma once

#include <algorithm>
#include <numeric>

#include "core/cuda/processors.h"
#include "kernels/cuda/hopper/fetch_boxes.cuh"
#include "kernels/cuda/hopper/rolling_softmax.cuh"

namespace minisgl::cuda::hopper {

// Of each 8 columns of a row, a quad's lanes have 2 in `own`, for four times 8 columns; each gets 8 columns as a whole.
__device__ __forceinline__ uint4 gather_columns(const std::uint32_t (&own)[4]) {
  const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
  const std::uint32_t a = __shfl_xor_sync(0xffffffffu, odd ? own[0] : own[1], 1);
  const std::uint32_t b = __shfl_xor_sync(0xffffffffu, odd ? own[2] : own[3], 1);
  const std::uint32_t pairs[4] = {odd ? a : own[0], odd ? own[1] : a, odd ? b : own[2], odd ? own[3] : b};
  const std::uint32_t c = __shfl_xor_sync(0xffffffffu, upper ? pairs[0] : pairs[2], 2);
  const std::uint32_t d = __shfl_xor_sync(0xffffffffu, upper ? pairs[1] : pairs[3], 2);
  return {upper ? c : pairs[0], upper ? d : pairs[1], upper ? pairs[2] : c, upper ? pairs[3] : d};
}

// A lane's two queries, of which `query` is the first.
template <int dim>
__device__ __forceinline__ void store_rows(const AttentionArgs& args, const PrefillTile& tile, int query,
                                           const float (&acc)[dim / 8][4], const RollingSoftmax& softmax) {
#pragma unroll
  for (int half = 0; half < 2; ++half, query += 8) {
    const int known = min(query, tile.num_queries - 1);
    const float inverse = 1.0f / (softmax.sum[half] + sink_weight(args, tile.head_of(known), softmax.base[half]));
    bf16* out = static_cast<bf16*>(args.out) + (tile.row_of(known) * args.shape.num_heads + tile.head_of(known)) * dim;
#pragma unroll
    for (int j = 0; j < dim / 8; j += 4) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pairs[i] = pack2<bf16>(acc[j + i][2 * half] * inverse, acc[j + i][2 * half + 1] * inverse);
      const uint4 columns = gather_columns(pairs);
      if (query < tile.num_queries) *reinterpret_cast<uint4*>(out + 8 * (j + threadIdx.x % 4)) = columns;
    }
  }
}

// A consumer of 64 queries, from `consumer` * 64 on of each tile.
template <typename T, int dim>
class Attending {
 public:
  using S = BoxShape<T, dim>;
  using Barriers = BoxBarriers<S::kStages>;

  __device__ __forceinline__ Attending(const AttentionArgs& args, int consumer, const unsigned char* queries,
                                       const unsigned char* keys, const unsigned char* values, Barriers& barriers)
      : args_(args),
        barriers_(barriers),
        consumer_(consumer),
        query_(consumer * kGroupQueries + threadIdx.x % kGroup / 32 * 16 + lane() / 4),
        queries_at_(shared_address(queries) + consumer * kGroupQueries * kTileRowBytes),
        keys_at_(shared_address(keys)),
        values_at_(shared_address(values)),
        scale_log2_(args.scale * kLog2E) {}

  __device__ __forceinline__ void run() {
    if (consumer_ == 1) pass_turn();  // the first turn is the first warpgroup's
    for_each_tile(barriers_, [&](const PrefillTile& tile, int dealt) {
      tile_ = &barriers_.tiles[dealt];
      if (consumer_ * kGroupQueries >= tile.num_queries) return pass_by(tile);
      softmax_.clear();
#pragma unroll
      for (int j = 0; j < dim / 8; ++j) acc_[j][0] = acc_[j][1] = acc_[j][2] = acc_[j][3] = 0.0f;
      barriers_.full_queries.wait(query_turn_.parity);
      query_turn_.advance();
      if constexpr (S::kHoldsQueries) take_queries();
      fold(tile);
      if (barriers_.has_non_finite[dealt]) {
        add_non_finite<T, dim>(pages_of<T>(args_, tile_->sequence, tile_->kv_head), *tile_,
                               tile_->visible_to_lane(query_), S::kPositions, acc_);
      }
      store_rows<dim>(args_, *tile_, query_, acc_, softmax_);
    });
  }

 private:
  static constexpr int kOwnBarrier = 1;  // 1 and 2: a warpgroup's turn

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ void sync_turn() { sync_threads(kOwnBarrier + consumer_, kConsumers * kGroup); }
  __device__ __forceinline__ void pass_turn() { arrive_at(kOwnBarrier + 1 - consumer_, kConsumers * kGroup); }
  __device__ __forceinline__ void release(Barrier& barrier) {
    if (lane() == 0) barrier.arrive();
  }

  // Lets a tile go that has no queries for this consumer.
  __device__ __forceinline__ void pass_by(const PrefillTile& tile) {
    barriers_.full_queries.wait(query_turn_.parity);
    query_turn_.advance();
    release(barriers_.empty_queries);
    for (std::int32_t first = tile.begin; first < tile.end; first += S::kPositions, turn_.advance()) {
      barriers_.full_keys[turn_.stage].wait(turn_.parity);
      release(barriers_.empty_keys[turn_.stage]);
      barriers_.full_values[turn_.stage].wait(turn_.parity);
      release(barriers_.empty_values[turn_.stage]);
    }
  }

  // Goes through a tile's positions. The consumers take turns where both have queries.
  __device__ __forceinline__ void fold(const PrefillTile& tile) {
    constexpr int kBlocks = S::kPositions / 8;
    const bool takes_turns = tile.num_queries > kGroupQueries;
    float shrink[2];
    barriers_.full_keys[turn_.stage].wait(turn_.parity);
    begin_scores(turn_.stage);
    wait_products<0>();
    touch(score_);
    release(barriers_.empty_keys[turn_.stage]);
    finish_scores(tile, tile.begin);
    softmax_.follow(score_, scale_log2_, 0.0f, shrink);
    softmax_.template weigh<0, kBlocks>(score_, scale_log2_);
    pack_weights();
    typename S::Turns before = turn_;
    turn_.advance();
    for (std::int32_t first = tile.begin + S::kPositions; first < tile.end; first += S::kPositions) {
      barriers_.full_keys[turn_.stage].wait(turn_.parity);
      barriers_.full_values[before.stage].wait(before.parity);
      if (takes_turns) sync_turn();
      begin_scores(turn_.stage);
      begin_values(before.stage);
      if (takes_turns) pass_turn();
      wait_products<1>();
      touch(score_);
      release(barriers_.empty_keys[turn_.stage]);
      finish_scores(tile, first);
      const bool moved = softmax_.follow(score_, scale_log2_, softmax_.kSlack, shrink);
      softmax_.template weigh<0, kBlocks / 2>(score_, scale_log2_);
      compute_before_next_wait(softmax_.sum[0] + softmax_.sum[1], &barriers_.never_written);
      wait_products<0>();
      touch(acc_);
      release(barriers_.empty_values[before.stage]);
      if (moved) scale(shrink);
      softmax_.template weigh<kBlocks / 2, kBlocks>(score_, scale_log2_);
      pack_weights();  // the values don't read the last ones any more
      before = turn_;
      turn_.advance();
    }
    if constexpr (!S::kHoldsQueries) release(barriers_.empty_queries);
    barriers_.full_values[before.stage].wait(before.parity);
    begin_values(before.stage);
    wait_products<0>();
    touch(acc_);
    release(barriers_.empty_values[before.stage]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      softmax_.sum[half] += __shfl_xor_sync(0xffffffffu, softmax_.sum[half], 1);
      softmax_.sum[half] += __shfl_xor_sync(0xffffffffu, softmax_.sum[half], 2);
    }
  }

  __device__ __forceinline__ void finish_scores(const PrefillTile& tile, std::int32_t first) {
    cap_scores(score_, args_.cap);
    if (tile.masks(first, S::kPositions)) hide(score_, first, tile_->visible_to_lane(query_));
  }
  __device__ __forceinline__ void scale(const float (&by)[2]) {
#pragma unroll
    for (int j = 0; j < dim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc_[j][i] *= by[i / 2];
    }
  }
  __device__ __forceinline__ void take_queries() {
    const int row = threadIdx.x % kGroup / 32 * 16 + lane() % 16;
#pragma unroll
    for (int k = 0; k < dim / 16; ++k) {
      const int chunk = 2 * k + lane() / 16;
      ldmatrix_x4(held_[k],
                  queries_at_ + chunk / 8 * S::kQueryStride + row * kTileRowBytes + (chunk % 8 ^ row % 8) * 16);
      if constexpr (!std::is_same_v<T, bf16>) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&held_[k][i]));
          held_[k][i] = pack2<T>(pair.x, pair.y);
        }
      }
    }
    __syncwarp();
    release(barriers_.empty_queries);
  }
  __device__ __forceinline__ void begin_scores(int stage) {
    const std::uint32_t stage_at = keys_at_ + stage * S::kStageBytes;
    touch(score_);
    begin_products();
#pragma unroll
    for (int k = 0; k < dim / 16; ++k) {  // 16 columns are 32 bytes
      const int c = k / 4, within = k % 4 * 32;
      const std::uint64_t keys = tile_descriptor(stage_at + c * S::kColumnStride + within, 16, S::kRowStride);
      if constexpr (S::kHoldsQueries) {
        Product<T, S::kPositions>::registers_rows(score_, held_[k], keys, k > 0);
      } else {
        Product<T, S::kPositions>::shared(score_, tile_descriptor(queries_at_ + c * S::kQueryStride + within, 16), keys,
                                          k > 0);
      }
    }
    commit_products();
  }
  __device__ __forceinline__ void begin_values(int stage) {
    const std::uint32_t stage_at = values_at_ + stage * S::kStageBytes;
    touch(acc_);
    begin_products();
#pragma unroll
    for (int k = 0; k < S::kPositions / 16; ++k) {
      Product<T, dim>::registers(acc_, weights_[k],
                                 tile_descriptor(stage_at + k * 2 * S::kRowStride, S::kColumnStride, S::kRowStride), 1);
    }
    commit_products();
  }

  __device__ __forceinline__ void pack_weights() {
#pragma unroll
    for (int k = 0; k < S::kPositions / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights_[k][i] = pack2<T>(score_[2 * k + i / 2][i % 2 * 2], score_[2 * k + i / 2][i % 2 * 2 + 1]);
    }
  }

  const AttentionArgs& args_;
  Barriers& barriers_;
  const int consumer_, query_;
  const std::uint32_t queries_at_, keys_at_, values_at_;
  const float scale_log2_;
  typename S::Turns turn_;
  Turn<1> query_turn_;
  const PrefillTile* tile_;  // in shared memory: registers are few
  float score_[S::kPositions / 8][4];
  std::uint32_t weights_[S::kPositions / 16][4];
  std::uint32_t held_[S::kHoldsQueries ? dim / 16 : 1][4];
  RollingSoftmax softmax_;
  float acc_[dim / 8][4];
};

template <typename T, int dim>
__global__ void __launch_bounds__((1 + kConsumers) * kGroup, 1)
    box_prefill_kernel(const BoxArgs args, const __grid_constant__ CUtensorMap query_map,
                       const __grid_constant__ CUtensorMap key_map, const __grid_constant__ CUtensorMap value_map) {
  using S = BoxShape<T, dim>;
  let_next_start();
  extern __shared__ unsigned char unaligned[];
  __shared__ BoxBarriers<S::kStages> barriers;
  unsigned char* queries = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  unsigned char* keys = queries + S::kQueryBytes;
  unsigned char* values = keys + S::kStages * S::kStageBytes;
  if (threadIdx.x == 0) barriers.init(S::kWarps);
  __syncthreads();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler sees: all of a warp agree
  if (warp < kGroup / 32) {
    shrink_registers_to<40>();
    if (warp == 0) fetch_all_keys<S>(args, query_map, key_map, queries, keys, barriers);
    if (warp == 1) fetch_all_values<S>(args, value_map, values, barriers);
    if (warp == 2) deal_tiles<S>(args, barriers);
    if (warp == 3) clean_values<T, S>(values, barriers);
  } else {
    grow_registers_to<232>();
    wait_for_previous();
    Attending<T, dim>(args.attention, warp / (kGroup / 32) - 1, queries, keys, values, barriers).run();
  }
}

// Consumers that don't hold their queries can't make f16 of them.
template <typename T, int dim>
constexpr bool kTakesBoxes =
    dim % kTileColumns == 0 && (std::is_same_v<T, bf16> || (std::is_same_v<T, half> && dim <= 128));

// Whether pages can arrive as boxes of 8 rows or more, and queries as whole rows.
inline bool arrive_as_boxes(const AttentionArgs& args, int dim) {
  return args.shape.head_dim == dim && args.cache.page_size % 8 == 0 &&
         args.shape.num_heads / args.shape.num_kv_heads <= kQueries;
}

// [rows / 8, dim / 64, 8, 64]: how a stage holds them. The cache's end isn't known here: no map leaves the tables'
// pages.
template <typename T, int dim>
CUtensorMap page_map(const void* data, int box_rows) {
  constexpr std::uint64_t kRowBytes = 2 * dim;
  return tensor_map(data, {.sizes = {kTileColumns, 8, dim / kTileColumns, std::uint64_t{1} << 28},
                           .strides = {kRowBytes, kTileRowBytes, 8 * kRowBytes},
                           .box = {kTileColumns, 8, dim / kTileColumns, static_cast<std::uint32_t>(box_rows / 8)}});
}
inline CUtensorMap query_map(const AttentionArgs& args, int box_rows) {
  const HeadShape& shape = args.shape;
  const auto group = static_cast<std::uint32_t>(shape.num_heads / shape.num_kv_heads);
  const auto rows = static_cast<std::uint64_t>(args.step.num_rows);
  const auto head_bytes = static_cast<std::uint64_t>(2 * shape.head_dim);
  const auto row_bytes = static_cast<std::uint64_t>(2 * shape.row_size());
  return tensor_map(args.qkv, {.sizes = {head_bytes / 2, static_cast<std::uint64_t>(shape.num_heads), rows, 1},
                               .strides = {head_bytes, row_bytes, row_bytes * rows},
                               .box = {kTileColumns, group, static_cast<std::uint32_t>(box_rows), 1}});
}

// Of at most kMostTicketed sequences.
template <typename T, int dim>
void launch_box_prefill(const AttentionArgs& args, cudaStream_t stream) {
  using S = BoxShape<T, dim>;
  const int tile_rows = kQueries / (args.shape.num_heads / args.shape.num_kv_heads);
  const std::int64_t most_tiles = std::int64_t{(args.step.most_prefill_rows + tile_rows - 1) / tile_rows} *
                                  args.shape.num_kv_heads * args.step.num_prefills;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(num_processors(), most_tiles));
  const int box_rows = std::gcd(args.cache.page_size, S::kPositions);
  const int query_rows = std::min(tile_rows, args.step.most_prefill_rows);
  const auto kernel = box_prefill_kernel<T, dim>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  launch_kernel(kernel, dim3(blocks), (1 + kConsumers) * kGroup, S::kBytes, stream,
                BoxArgs{.attention = args, .box_rows = box_rows, .query_rows = query_rows}, query_map(args, query_rows),
                page_map<T, dim>(args.cache.keys, box_rows), page_map<T, dim>(args.cache.values, box_rows));
}

template <typename T, int dim>
void box_prefill_attention(const AttentionArgs& args, cudaStream_t stream) {
  for (int first = 0; first < args.step.num_prefills; first += kMostTicketed) {
    AttentionArgs piece = args;
    piece.step.prefills += first;
    piece.step.num_prefills = std::min(kMostTicketed, args.step.num_prefills - first);
    launch_box_prefill<T, dim>(piece, stream);
  }
}

}  // namespace minisgl::cuda::hopper
