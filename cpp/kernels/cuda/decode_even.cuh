// Decode of many sequences: a grid of blocks that run all at once, each with a piece of the line that all tiles lie in.
// A block's warps take its tiles in turn, each through a ring in shared memory that is filled ahead across the borders
// of heads and sequences, so that reads don't pause; after each head they are merged, and where several blocks have
// parts of a head, the one that arrives last merges those. Floor: each key and value is read once.
#pragma once

#include <algorithm>

#include "core/cuda/processors.h"
#include "kernels/cuda/decode_copies.cuh"
#include "kernels/cuda/decode_merge.cuh"

namespace minisgl::cuda {

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kResident) decode_even_kernel(const AttentionArgs args) {
  let_next_start();
  extern __shared__ unsigned char unaligned[];
  __shared__ EvenShared<S> shared;
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const std::uint32_t ring = (shared_address(unaligned) + 1023) / 1024 * 1024 + warp * S::kRingBytes;
  const int group = args.shape.num_heads / args.shape.num_kv_heads;
  const int blocks_per_kv_head = (group + S::queries - 1) / S::queries;
  const int head_blocks = args.shape.num_kv_heads * blocks_per_kv_head;
  const int block = static_cast<int>(blockIdx.x), head_dim = args.shape.head_dim;

  const auto cuts = find_cuts<S>(args, head_blocks, shared);
  Piece piece{cuts.cut(block, shared.places[0]), cuts.cut(block + 1, shared.places[1]), 0};
  if (piece.begin >= piece.end) return;
  piece.turn = piece.end;
  if (piece.end < cuts.total && piece.end == (block + 1) * cuts.length) {
    const Place& place = shared.places[1];
    const std::int32_t over = (piece.end - place.begin) % (place.tiles + S::kHeadTiles);
    if (piece.end - over > piece.begin) piece.turn = piece.end - over;
  }

  // The warp's tiles on the way to its ring: every kWarps-th of the block's.
  Visits<S> ahead;
  ahead.start(args, head_blocks, piece, shared.places);
  TileCopies<S> copies(args, ring);
  int next = ahead.low + warp;
  bool has_next = true;
  const auto find_next = [&] {
    while (has_next && next >= ahead.high) {
      next -= ahead.high;
      has_next = ahead.advance(args, head_blocks, piece, shared.places);
      next += ahead.low;
    }
    if (!has_next) return;
    const Span<S::kPositions> span(ahead.sequence, args.window);
    copies.template look_up<S::kPositions>(args, ahead.sequence, ahead.head_block / blocks_per_kv_head, span.begin,
                                           span.end, span.first + next * S::kPositions);
  };
  const auto copy_next = [&](int stage) {
    if (has_next) {
      copies.begin(stage);
      next += S::kWarps;
      find_next();
    }
    commit_copies();
  };
  {  // brings the first page numbers near, all at once
    const Span<S::kPositions> span(ahead.sequence, args.window);
    const int tile = next + lane * S::kWarps;
    if (lane < 2 * S::kStages && tile < ahead.high)
      fetch_early(args.step.pages + ahead.sequence.first_page +
                  (span.first + tile * S::kPositions) / args.cache.page_size);
  }
  find_next();
  for (int stage = 0; stage < S::kStages; ++stage) {
    // The step and what isn't new were written by earlier steps: they need not wait for this step's kernels.
    if (has_next && copies.has_new()) wait_for_previous();
    copy_next(stage);
  }
  wait_for_previous();

  TileSoftmax<S> softmax;
  Visits<S> visits;
  visits.start(args, head_blocks, piece, shared.places);
  int first_head, num_queries;
  const auto enter_head = [&] {
    const int first_in_group = visits.head_block % blocks_per_kv_head * S::queries;
    num_queries = min(S::queries, group - first_in_group);
    first_head = visits.head_block / blocks_per_kv_head * group + first_in_group;
    softmax.load_queries(
        static_cast<const bf16*>(args.qkv) + visits.sequence.first_row * args.shape.row_size() + first_head * head_dim,
        num_queries, head_dim);
  };
  enter_head();
  int own = warp, stage = 0;
  while (true) {
    softmax.clear();
    softmax.convert_queries();
    const Span<S::kPositions> span(visits.sequence, args.window);
    std::uint32_t share = 0;
    for (own += visits.low; own < visits.high;) {
      wait_copies<S::kStages - 1>();
      __syncwarp();
      const std::uint32_t at = ring + stage * S::kStageBytes;
      softmax.fold(at, span.first + own * S::kPositions, span.begin, span.end, args.scale * kLog2E, args.cap);
      __syncwarp();
      own += S::kWarps;
      const int used = stage;
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
      if (own < visits.high)
        copy_next(used);
      else
        share = at;  // free until the warps are merged
    }
    own -= visits.high;

    if (share != 0) {
      softmax.put(shared.max[warp], shared.sum[warp], share);
    } else if (lane < S::queries) {
      shared.max[warp][lane] = -INFINITY;
      shared.sum[warp][lane] = 0.0f;
    }
    if (lane == 0) shared.share_at[warp] = share;
    int first_cut, num_cuts;
    cuts.inside(visits.begin, visits.tiles, first_cut, num_cuts);
    const int part = block - first_cut + 1;
    const HeadAnswer answer{
        .args = args,
        .out = static_cast<bf16*>(args.out) +
               (std::int64_t{visits.sequence.first_row} * args.shape.num_heads + first_head) * head_dim,
        .partial =
            num_cuts == 0 ? nullptr : args.partials + (2 * block + (part == 0 ? 1 : 0)) * partial_floats(head_dim),
        .first_head = first_head,
        .num_queries = num_queries};
    // The next head's queries are on their way while this head is merged.
    const bool more = visits.advance(args, head_blocks, piece, shared.places);
    if (more) enter_head();
    __syncthreads();
    merge_warps<S>(answer, shared);
    if (num_cuts > 0) __threadfence();
    __syncthreads();
    if (share != 0) copy_next(stage == 0 ? S::kStages - 1 : stage - 1);
    if (num_cuts > 0) {
      if (threadIdx.x == 0) {
        std::uint32_t* arrived = args.arrived + first_cut - 1;
        shared.is_last = atomicAdd(arrived, 1u) == static_cast<unsigned>(num_cuts);
        if (shared.is_last) *arrived = 0;  // for the next launch
      }
      __syncthreads();
      if (shared.is_last) {
        __threadfence();
        merge_parts<S>(answer, first_cut - 1, num_cuts + 1);
      }
    }
    if (!more) break;
  }
  wait_copies<0>();
}

template <typename S>
void launch_decode_even(const AttentionArgs& args, cudaStream_t stream) {
  const auto kernel = decode_even_kernel<S>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes));
  static const std::int64_t resident = [] {
    int blocks = 0;
    MINISGL_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, decode_even_kernel<S>, S::kThreads, S::kBytes));
    return std::int64_t{num_processors()} * std::min(blocks, S::kResident);
  }();
  const auto blocks = static_cast<unsigned>(std::min(resident, args.most_parts / 2));
  launch_kernel(kernel, dim3(blocks), S::kThreads, S::kBytes, stream, args);
}

template <typename T, int dim>
void decode_evenly(const AttentionArgs& args, cudaStream_t stream) {
  if constexpr (dim <= 128) {  // registers hold no more than 8 queries of larger heads
    if (args.shape.num_heads / args.shape.num_kv_heads > 8)
      return launch_decode_even<EvenShape<T, dim, kDecodeQueries>>(args, stream);
  }
  launch_decode_even<EvenShape<T, dim, 8>>(args, stream);
}

}  // namespace minisgl::cuda
