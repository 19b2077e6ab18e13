// The blocks that share a row of logits: a cluster, each with a slice of the row. Sums, maxima and histograms over the
// row.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda/cluster.cuh"
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kMostBlocks = 8;  // blocks of a row: as many as every GPU with clusters can run
constexpr int kBins = 2048;
constexpr int kMostCandidates = 1024;

// A token's place in the order: higher logit first, then lower id.
using Key = std::uint64_t;
using Mass = unsigned long long;

// Where a running sum over the bins reaches a target.
struct Crossing {
  std::int32_t bin;  // -1: nowhere
  Mass before, own;  // mass of the bins before it, and of it
};

// Shared memory of a block.
struct TeamMemory {
  Mass from_block[2][kMostBlocks];
  Mass of_warp[kSampleWarps];
  Crossing crossing;
  std::int32_t num_candidates, token;
  union {
    std::uint32_t bins[2][kBins];  // low and high words: 64-bit atomics on shared memory are slow
    struct {
      Key key[kMostCandidates];
      Mass mass[kMostCandidates];
    } candidates;
  };
};

class Team {
 public:
  __device__ Team(TeamMemory& memory, int rank, int size) : memory_(memory), rank_(rank), size_(size) {}
  __device__ int rank() const { return rank_; }
  __device__ TeamMemory& memory() const { return memory_; }

  // The sum over the threads of this block, for each of them.
  __device__ Mass block_sum(Mass x) const {
    for (int mask = 16; mask > 0; mask >>= 1) x += __shfl_xor_sync(0xffffffffu, x, mask);
    __syncthreads();
    if (threadIdx.x % 32 == 0) memory_.of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    Mass sum = 0;
    for (int i = 0; i < kSampleWarps; ++i) sum += memory_.of_warp[i];
    return sum;
  }

  // One number a block, by rank; good until the call after the next.
  __device__ const Mass* exchange(Mass of_block) {
    turn_ ^= 1;
    if (static_cast<int>(threadIdx.x) < size_)
      *in_block(&memory_.from_block[turn_][rank_], static_cast<int>(threadIdx.x)) = of_block;
    cluster_sync();
    return memory_.from_block[turn_];
  }

  // Sums over all threads of the team: of the blocks before this one, of this one, of all.
  struct Sums {
    Mass before, own, all;
  };
  __device__ Sums sum(Mass x) {
    Sums sums{.before = 0, .own = block_sum(x), .all = 0};
    const Mass* of = exchange(sums.own);
    for (int i = 0; i < size_; ++i) {
      if (i < rank_) sums.before += of[i];
      sums.all += of[i];
    }
    return sums;
  }

  __device__ Key max(Key x) {
    for (int mask = 16; mask > 0; mask >>= 1) {
      const Key other = __shfl_xor_sync(0xffffffffu, x, mask);
      x = other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) memory_.of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    for (int i = 0; i < kSampleWarps; ++i) x = memory_.of_warp[i] > x ? memory_.of_warp[i] : x;
    const Mass* of = exchange(x);
    for (int i = 0; i < size_; ++i) x = of[i] > x ? of[i] : x;
    return x;
  }

  __device__ void clear_bins() const {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kBins; i += kSampleThreads) memory_.bins[i / kBins][i % kBins] = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void count_in_bin(int bin) const { atomicAdd(&memory_.bins[0][bin], 1u); }
  __device__ __forceinline__ void add_to_bin(int bin, Mass mass) const {
    const auto low = static_cast<std::uint32_t>(mass);
    const std::uint32_t carry = atomicAdd(&memory_.bins[0][bin], low) + low < low ? 1 : 0;
    const std::uint32_t high = static_cast<std::uint32_t>(mass >> 32) + carry;
    if (high != 0) atomicAdd(&memory_.bins[1][bin], high);
  }

  // The bin at which the team's bins, added up from 0 on, reach `target` (at least 1).
  __device__ Crossing cross(Mass target) {
    cluster_sync();
    // Each block adds up an equal part of the bins, each thread at most kMostOwn in a row.
    constexpr int kMostOwn = kBins / kSampleThreads;
    const int part = kBins / size_;
    const int each = part > kSampleThreads ? part / kSampleThreads : 1;
    const int first = rank_ * part + static_cast<int>(threadIdx.x) * each;
    Mass own[kMostOwn] = {}, sum = 0;
    if (static_cast<int>(threadIdx.x) * each < part) {
      for (int block = 0; block < size_; ++block) {
        const auto* bins = in_block(&memory_.bins, block);
#pragma unroll
        for (int i = 0; i < kMostOwn; ++i)
          if (i < each) own[i] += Mass{(*bins)[1][first + i]} << 32 | (*bins)[0][first + i];
      }
    }
#pragma unroll
    for (int i = 0; i < kMostOwn; ++i) sum += own[i];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Mass scan = sum;
    for (int offset = 1; offset < 32; offset <<= 1) {
      const Mass before = __shfl_up_sync(0xffffffffu, scan, offset);
      if (lane >= offset) scan += before;
    }
    __syncthreads();
    if (lane == 31) memory_.of_warp[warp] = scan;
    __syncthreads();
    Mass before = scan - sum, of_block = 0;
    for (int i = 0; i < kSampleWarps; ++i) {
      if (i < warp) before += memory_.of_warp[i];
      of_block += memory_.of_warp[i];
    }
    const Mass* of = exchange(of_block);
    Mass all = 0;
    for (int i = 0; i < size_; ++i) {
      if (i < rank_) before += of[i];
      all += of[i];
    }
    if (all < target) return {.bin = -1, .before = all, .own = 0};
#pragma unroll
    for (int i = 0; i < kMostOwn; ++i) {
      if (before < target && before + own[i] >= target) {
        for (int block = 0; block < size_; ++block)
          *in_block(&memory_.crossing, block) = {.bin = first + i, .before = before, .own = own[i]};
      }
      before += own[i];
    }
    cluster_sync();
    return memory_.crossing;
  }

 private:
  TeamMemory& memory_;
  int rank_, size_;
  int turn_ = 0;
};

}  // namespace minisgl::cuda
