// Pairs of tokens and experts, sorted by expert, and the sums of their outputs. Bound by the bytes of rows that are
// copied and summed.
//
// A place among an expert's pairs is the number of pairs before it, so that the same choices always lie in the same
// order. Up to kMostOrderedAtOnce rows each block finds all places for itself, and copies a part of the rows; up to
// kMostChosenAtOnce it also chooses for all of them. With more rows a block counts its own rows' choices first, and a
// second kernel adds up what the blocks before it counted.
#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/error.h"
#include "kernels/cuda/expert_choice.cuh"
#include "kernels/cuda/experts.h"

namespace minisgl::cuda {
namespace {

constexpr int kWarps = 32, kThreads = 32 * kWarps;
constexpr int kMostChosenAtOnce = 32, kMostOrderedAtOnce = 256;  // rows
constexpr int kChoosers = 8;                                     // warps of a block that only chooses
constexpr int kRowsOfBlock = 64;                                 // of more
constexpr int kSumThreads = 256;

int blocks_of_rows(std::int64_t rows) {
  return rows <= kMostOrderedAtOnce ? 1 : static_cast<int>((rows + kRowsOfBlock - 1) / kRowsOfBlock);
}

struct OrderArgs {
  ExpertScratch scratch;
  RouterRule rule;
  const bf16* x;
  const float* norm;
  float eps;
  int rows, hidden;
  int num_experts, first_expert, all_experts, logit_stride;
  int rows_of_block;  // whose places a block finds
  std::uint64_t* use;
};

// A block's memory, for `pairs` of its rows.
struct OrderMemory {
  std::uint16_t* before;  // [kWarps][num_experts]: pairs of the warps before
  int* begin;             // [num_experts + 1]: the slot of the block's first pair with an expert
  std::int16_t* choice;   // [pairs]
  std::uint16_t* rank;    // [pairs]: among the warp's of the same expert

  __device__ OrderMemory(unsigned char* memory, int num_experts, int pairs) {
    begin = reinterpret_cast<int*>(memory);
    before = reinterpret_cast<std::uint16_t*>(begin + num_experts + 1);
    choice = reinterpret_cast<std::int16_t*>(before + kWarps * num_experts);
    rank = reinterpret_cast<std::uint16_t*>(choice + pairs);
  }
  static std::size_t bytes(int num_experts, int pairs) {
    return static_cast<std::size_t>(4 * (num_experts + 1) + 2 * kWarps * num_experts + 4 * pairs);
  }
};

// The choices of the rows from first_row on; `writes` says who keeps them.
__device__ void choose_rows(const OrderArgs& args, int first_row, int rows, bool writes, std::int16_t* choice) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chosen = args.rule.num_chosen;
  for (int r = warp; r < rows; r += static_cast<int>(blockDim.x) / 32) {
    const int row = first_row + r;
    const ExpertChoice its =
        choose_experts(args.scratch.logits + std::int64_t{row} * args.logit_stride, args.all_experts, args.rule);
    if (lane >= chosen) continue;
    const int here = its.expert - args.first_expert;
    const int expert = here >= 0 && here < args.num_experts ? here : -1;
    if (choice != nullptr) choice[r * chosen + lane] = static_cast<std::int16_t>(expert);
    if (writes) {
      args.scratch.choices[row * chosen + lane] = expert;
      args.scratch.pair_weights[row * chosen + lane] = its.weight;
    }
  }
}

__device__ __forceinline__ int pairs_of_warp(int pairs) {
  return (pairs + kThreads - 1) / kThreads * 32;
}

// Ranks of pairs within their warps, and before[w]: how many pairs of each expert warp w has.
__device__ void rank_pairs(const OrderMemory& memory, int num_experts, int pairs) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::uint16_t* own = memory.before + warp * num_experts;
  for (int e = lane; e < num_experts; e += 32) own[e] = 0;
  __syncwarp();
  const int share = pairs_of_warp(pairs);
  const int end = min((warp + 1) * share, pairs);
  for (int first = warp * share; first < end; first += 32) {
    const int p = first + lane;
    const int expert = p < end ? memory.choice[p] : -1;
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    const int rank = __popc(same & ((1u << lane) - 1));
    const int base = expert >= 0 ? own[expert] : 0;
    __syncwarp();
    if (expert >= 0) {
      memory.rank[p] = static_cast<std::uint16_t>(base + rank);
      if (rank == 0) own[expert] = static_cast<std::uint16_t>(base + __popc(same));
    }
    __syncwarp();
  }
}

// Where the block's pairs of each expert begin: behind those of experts before it, and of blocks before this one.
__device__ void place_experts(const OrderArgs& args, const OrderMemory& memory, int pairs, int block, int blocks,
                              bool writes) {
  __shared__ int of_warp[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int e = threadIdx.x;
  int own = 0, earlier = 0, all = 0;
  if (e < args.num_experts) {
    const int with_pairs = (pairs + pairs_of_warp(pairs) - 1) / pairs_of_warp(pairs);
#pragma unroll 4
    for (int w = 0; w < with_pairs; ++w) {
      const int count = memory.before[w * args.num_experts + e];
      memory.before[w * args.num_experts + e] = static_cast<std::uint16_t>(own);
      own += count;
    }
    all = own;
    if (blocks > 1) {
      all = 0;
      for (int b = 0; b < blocks; ++b) {
        const int count = __ldcg(args.scratch.counts + std::int64_t{b} * args.num_experts + e);
        if (b < block) earlier += count;
        all += count;
      }
    }
  }
  int inclusive = all;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == 31) of_warp[warp] = inclusive;
  __syncthreads();
  int first = inclusive - all;
  for (int w = 0; w < warp; ++w) first += of_warp[w];
  if (e < args.num_experts) {
    memory.begin[e] = first + earlier;
    if (writes) {
      args.scratch.offsets[e] = first;
      if (e == args.num_experts - 1) args.scratch.offsets[e + 1] = first + all;
    }
  }
  const int used = __syncthreads_count(all > 0);
  if (writes && e == 0 && args.use != nullptr) {
    args.use[0] += 1;
    args.use[1] += used;
  }
}

// x of a pair, or its norm, to the pair's slot; by a warp.
__device__ void copy_row(const OrderArgs& args, int row, int slot) {
  const int lane = threadIdx.x % 32, vectors = args.hidden / 8;
  const auto* from = reinterpret_cast<const uint4*>(args.x + std::int64_t{row} * args.hidden);
  auto* to = reinterpret_cast<uint4*>(static_cast<bf16*>(args.scratch.x) + std::int64_t{slot} * args.hidden);
  constexpr int kAtOnce = 8;
  float inverse = 0.0f;
  if (args.norm != nullptr) {
    float squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < vectors; i += 32) {
      const uint4 v = from[i];
      const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float low = __uint_as_float(words[k] << 16), high = __uint_as_float(words[k] & 0xffff0000u);
        squares += low * low + high * high;
      }
    }
    inverse = rsqrtf(warp_sum(squares) / static_cast<float>(args.hidden) + args.eps);
  }
  for (int first = lane; first < vectors; first += 32 * kAtOnce) {
    uint4 values[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + 32 * k < vectors) values[k] = from[first + 32 * k];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = first + 32 * k;
      if (i >= vectors) continue;
      if (args.norm != nullptr) values[k] = normed(values[k], args.norm + 8 * i, inverse);
      to[i] = values[k];
    }
  }
}

__global__ void __launch_bounds__(kThreads) count_choices_kernel(const OrderArgs args) {
  extern __shared__ int counts[];
  let_next_start();
  for (int e = threadIdx.x; e < args.num_experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  wait_for_previous();
  const int first_row = blockIdx.x * args.rows_of_block, rows = min(args.rows_of_block, args.rows - first_row);
  choose_rows(args, first_row, rows, true, nullptr);
  __syncthreads();
  const int chosen = args.rule.num_chosen;
  for (int p = threadIdx.x; p < rows * chosen; p += kThreads) {
    const int expert = args.scratch.choices[first_row * chosen + p];
    if (expert >= 0) atomicAdd(counts + expert, 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < args.num_experts; e += kThreads)
    args.scratch.counts[std::int64_t{blockIdx.x} * args.num_experts + e] = counts[e];
}

__global__ void __launch_bounds__(32 * kChoosers) choose_kernel(const OrderArgs args) {
  let_next_start();
  wait_for_previous();
  const int first_row = blockIdx.x * kChoosers;
  choose_rows(args, first_row, min(kChoosers, args.rows - first_row), true, nullptr);
}

// shared: all blocks find the places of all rows, and each copies some. chooses: they choose, too.
template <bool shared, bool chooses>
__global__ void __launch_bounds__(kThreads) order_kernel(const OrderArgs args) {
  extern __shared__ __align__(16) unsigned char bytes[];
  let_next_start();
  wait_for_previous();
  const int chosen = args.rule.num_chosen;
  const int block = shared ? 0 : blockIdx.x, blocks = shared ? 1 : gridDim.x;
  const int first_row = block * args.rows_of_block, rows = min(args.rows_of_block, args.rows - first_row);
  const int pairs = rows * chosen;
  const OrderMemory memory(bytes, args.num_experts, args.rows_of_block * chosen);
  const bool writes = blockIdx.x == 0;
  if constexpr (chooses) {
    choose_rows(args, 0, rows, writes, memory.choice);
  } else {
    for (int p = threadIdx.x; p < pairs; p += kThreads)
      memory.choice[p] = static_cast<std::int16_t>(args.scratch.choices[first_row * chosen + p]);
  }
  __syncthreads();
  rank_pairs(memory, args.num_experts, pairs);
  __syncthreads();
  place_experts(args, memory, pairs, block, blocks, writes);
  const int share = pairs_of_warp(pairs);
  const int step = shared ? gridDim.x * kWarps : kWarps;
  for (int p = (shared ? blockIdx.x * kWarps : 0) + threadIdx.x / 32; p < pairs; p += step) {
    const int expert = memory.choice[p];
    const int slot =
        expert < 0 ? -1 : memory.begin[expert] + memory.before[p / share * args.num_experts + expert] + memory.rank[p];
    if (threadIdx.x % 32 == 0) {
      args.scratch.slots[first_row * chosen + p] = slot;
    }
    if (slot >= 0) copy_row(args, first_row + p / chosen, slot);
  }
}

struct SumArgs {
  ExpertScratch scratch;
  RouterRule rule;
  bf16* y;
  int hidden, logit_stride;
  bool adds;
  const float* norm;
  float eps;
  bf16* normed;
};

// One token a block, in the order of its choices.
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const SumArgs args) {
  __shared__ int slots[kMaxChosenExperts];
  __shared__ float weights[kMaxChosenExperts];
  const int chosen = args.rule.num_chosen, row = blockIdx.x;
  let_next_start();
  wait_for_previous();
  if (threadIdx.x < chosen) {
    slots[threadIdx.x] = args.scratch.slots[row * chosen + threadIdx.x];
    weights[threadIdx.x] = args.scratch.pair_weights[row * chosen + threadIdx.x];
  }
  __syncthreads();
  const float of_old = args.rule.shared == RouterRule::Shared::gated
                           ? sigmoid(args.scratch.logits[std::int64_t{row + 1} * args.logit_stride - 1])
                           : 1.0f;
  const auto* outputs = static_cast<const bf16*>(args.scratch.outputs);
  auto* y = reinterpret_cast<uint4*>(args.y + std::int64_t{row} * args.hidden);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < args.hidden / 8; i += kSumThreads) {
    float sum[8] = {};
    if (args.adds) add_scaled(sum, y[i], of_old);
    constexpr int kAtOnce = 4;
    for (int first = 0; first < chosen; first += kAtOnce) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int j = first + k;
        if (j < chosen && slots[j] >= 0)
          v[k] = reinterpret_cast<const uint4*>(outputs + std::int64_t{slots[j]} * args.hidden)[i];
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int j = first + k;
        if (j < chosen && slots[j] >= 0) add_scaled(sum, v[k], weights[j]);
      }
    }
    y[i] = make_uint4(pack2<bf16>(sum[0], sum[1]), pack2<bf16>(sum[2], sum[3]), pack2<bf16>(sum[4], sum[5]),
                      pack2<bf16>(sum[6], sum[7]));
    unpack(y[i], sum);
#pragma unroll
    for (int k = 0; k < 8; ++k) squares += sum[k] * sum[k];
  }
  if (args.norm == nullptr) return;
  __shared__ float of_warp[kSumThreads / 32];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = squares;
  __syncthreads();
  float all = 0.0f;
#pragma unroll
  for (int w = 0; w < kSumThreads / 32; ++w) all += of_warp[w];
  const float inverse = rsqrtf(all / static_cast<float>(args.hidden) + args.eps);
  auto* to = reinterpret_cast<uint4*>(args.normed + std::int64_t{row} * args.hidden);
  for (int i = threadIdx.x; i < args.hidden / 8; i += kSumThreads) to[i] = normed(y[i], args.norm + 8 * i, inverse);
}

template <typename Kernel>
void allow_shared_memory(Kernel kernel, std::size_t bytes) {
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace

std::size_t lay_out_experts(std::byte* at, const ExpertWeights& sizes, const RouterRule& rule, std::int64_t rows,
                            ExpertScratch& scratch) {
  std::size_t used = 0;
  const auto take = [&](auto*& pointer, std::int64_t bytes) {
    if (at != nullptr) pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at + used);
    used += (static_cast<std::size_t>(bytes) + 255) / 256 * 256;
  };
  const std::int64_t pairs = rows * rule.num_chosen;
  take(scratch.logits, 4 * rows * (sizes.all_experts + 1));
  take(scratch.pair_weights, 4 * pairs);
  take(scratch.choices, 4 * pairs);
  take(scratch.slots, 4 * pairs);
  take(scratch.offsets, 4 * (sizes.num_experts + 1));
  take(scratch.counts, std::int64_t{4} * ((rows + kRowsOfBlock - 1) / kRowsOfBlock) * sizes.num_experts);
  take(scratch.gated, 2 * pairs * sizes.width);
  take(scratch.x, 2 * pairs * sizes.hidden);
  take(scratch.outputs, 2 * pairs * sizes.hidden);
  return used;
}

void order_expert_rows(const ExpertsArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.weights.num_experts <= kThreads && args.rule.num_chosen <= kMaxChosenExperts);
  const int blocks = blocks_of_rows(args.rows);
  const OrderArgs order{.scratch = args.scratch,
                        .rule = args.rule,
                        .x = static_cast<const bf16*>(args.x),
                        .norm = args.norm,
                        .eps = args.eps,
                        .rows = args.rows,
                        .hidden = args.weights.hidden,
                        .num_experts = args.weights.num_experts,
                        .first_expert = args.weights.first_expert,
                        .all_experts = args.weights.all_experts,
                        .logit_stride = args.logit_stride(),
                        .rows_of_block = blocks == 1 ? args.rows : kRowsOfBlock,
                        .use = args.use};
  const std::size_t bytes = OrderMemory::bytes(order.num_experts, order.rows_of_block * args.rule.num_chosen);
  if (blocks == 1) {
    const dim3 grid(static_cast<unsigned>(std::clamp((args.pairs() + 15) / 16, 1, 128)));
    if (args.rows <= kMostChosenAtOnce) {
      allow_shared_memory(order_kernel<true, true>, bytes);
      return launch_kernel(order_kernel<true, true>, grid, kThreads, bytes, stream, order);
    }
    launch_kernel(choose_kernel, dim3(static_cast<unsigned>((args.rows + kChoosers - 1) / kChoosers)), 32 * kChoosers,
                  0, stream, order);
    allow_shared_memory(order_kernel<true, false>, bytes);
    return launch_kernel(order_kernel<true, false>, grid, kThreads, bytes, stream, order);
  }
  const dim3 grid(static_cast<unsigned>(blocks));
  launch_kernel(count_choices_kernel, grid, kThreads, static_cast<std::size_t>(4 * order.num_experts), stream, order);
  allow_shared_memory(order_kernel<false, false>, bytes);
  launch_kernel(order_kernel<false, false>, grid, kThreads, bytes, stream, order);
}

void sum_expert_rows(const ExpertsArgs& args, cudaStream_t stream) {
  launch_kernel(sum_kernel, dim3(static_cast<unsigned>(args.rows)), kSumThreads, 0, stream,
                SumArgs{.scratch = args.scratch,
                        .rule = args.rule,
                        .y = static_cast<bf16*>(args.y),
                        .hidden = args.weights.hidden,
                        .logit_stride = args.logit_stride(),
                        .adds = args.adds || args.rule.shared != RouterRule::Shared::none,
                        .norm = args.next_norm,
                        .eps = args.next_eps,
                        .normed = static_cast<bf16*>(args.normed)});
}

}  // namespace minisgl::cuda
