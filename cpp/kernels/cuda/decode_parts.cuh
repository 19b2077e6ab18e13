// Decode's parts of a sequence: how many there are, where they lie, and how the block that is done last merges them.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

constexpr int kMostSplits = 64;  // parts of a sequence

// Where a sequence's tiles are cut: evenly to a tile, or where parts taper and none gets long, into two of which the
// first is twice as long.
struct PartCuts {
  int num_tiles, num_parts;
  bool tapers;

  // least, extra: DecodeTiles::kLeastTiles and kExtraTiles.
  __device__ __forceinline__ PartCuts(const AttentionArgs& args, int num_tiles, int least, int extra)
      : num_tiles(num_tiles),
        num_parts(max(1, min(args.num_splits, (num_tiles + least - extra) / least))),
        tapers(args.tapers && num_tiles < 12 * least) {
    if (tapers) num_parts = args.num_splits > 1 && num_tiles >= 3 * least ? 2 : 1;
  }
  // The tiles before a part. A block's warps take `round` of them together.
  __device__ __forceinline__ int before(int part, int round) const {
    if (tapers && part == 1 && num_parts == 2) return (2 * num_tiles / round + 2) / 3 * round;
    return part * num_tiles / num_parts;
  }
};

__device__ __forceinline__ void add_weighed(float4& to, float weight, const float4& x) {
  to.x += weight * x.x;
  to.y += weight * x.y;
  to.z += weight * x.z;
  to.w += weight * x.w;
}
__device__ __forceinline__ void store_answer(bf16* to, const float4& x, float by) {
  *reinterpret_cast<uint2*>(to) = {pack2<bf16>(x.x * by, x.y * by), pack2<bf16>(x.z * by, x.w * by)};
}

// What each part weighs in each query's answer, [queries][kMostSplits], 0 where there is no part.
template <int warps>
__device__ __forceinline__ void weigh_parts(const AttentionArgs& args, int first_head, const float* partials,
                                            int num_parts, int num_queries, float* weights) {
  constexpr int kOwn = kMostSplits / 32;  // of a lane
  const std::int64_t part_floats = partial_floats(args.shape.head_dim);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int query = warp; query < num_queries; query += warps) {
    float part_max[kOwn], part_sum[kOwn], max = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int p = 32 * i + lane;
      part_max[i] = p < num_parts ? __ldcg(partials + p * part_floats + query) : -INFINITY;
      part_sum[i] = p < num_parts ? __ldcg(partials + p * part_floats + kDecodeQueries + query) : 0.0f;
      max = fmaxf(max, part_max[i]);
    }
    max = warp_max(max);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      part_max[i] = exp2_fast(part_max[i] - max);
      sum += part_max[i] * part_sum[i];
    }
    sum = warp_sum(sum) + sink_weight(args, first_head + query, max);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) weights[query * kMostSplits + 32 * i + lane] = part_max[i] / sum;
  }
}

// Merges the parts of num_queries heads from first_head on, which lie at `partials`, through `bytes` of shared memory
// into `out`.
template <int warps, int queries, int bytes>
__device__ __forceinline__ void merge_splits(const AttentionArgs& args, int first_head, const float* partials,
                                             int num_parts, int num_queries, unsigned char* memory, bf16* out) {
  constexpr int kThreads = 32 * warps, kWeightBytes = 4 * queries * kMostSplits;
  constexpr int kAtOnce = (bytes - kWeightBytes) / (16 * kThreads);  // parts
  static_assert(kAtOnce >= 8);
  auto* weights = reinterpret_cast<float*>(memory);
  const int head_dim = args.shape.head_dim;
  const std::int64_t part_floats = partial_floats(head_dim);
  const std::uint32_t own_sums = shared_address(memory) + kWeightBytes + 16 * threadIdx.x;
  const auto load_sums = [&](int value, int from) {
    const float* sums = partials + from * part_floats + 2 * kDecodeQueries + value;
    const int count = min(kAtOnce, num_parts - from);
#pragma unroll 4
    for (int p = 0; p < count; ++p) copy_16_async(own_sums + p * 16 * kThreads, sums + p * part_floats, true);
    commit_copies();
  };
  int value = 4 * static_cast<int>(threadIdx.x);
  if (value < num_queries * head_dim) load_sums(value, 0);  // on their way while they are weighed
  weigh_parts<warps>(args, first_head, partials, num_parts, num_queries, weights);
  __syncthreads();
  while (value < num_queries * head_dim) {
    const float* weight = weights + value / head_dim * kMostSplits;
    float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int from = 0;;) {
      const int count = min(kAtOnce, num_parts - from);
      wait_copies<0>();
#pragma unroll 4
      for (int p = 0; p < count; ++p)
        add_weighed(total, weight[from + p], load_shared<float4>(own_sums + p * 16 * kThreads));
      from += count;
      if (from == num_parts) break;
      load_sums(value, from);
    }
    store_answer(out + value, total, 1.0f);
    value += 4 * kThreads;
    if (value < num_queries * head_dim) load_sums(value, 0);
  }
}

// Into how many parts to cut each of `blocks` such that the last of the waves in which `resident` parts run at a time
// is full, or nearly.
inline int choose_splits(std::int64_t blocks, std::int64_t resident, std::int64_t most_parts) {
  int best = 1;
  const auto waves_per_split = [&](int splits) {
    return static_cast<double>((blocks * splits + resident - 1) / resident) / splits;
  };
  for (int splits = 2; splits <= kMostSplits && blocks * splits <= most_parts; ++splits)
    if (waves_per_split(splits) < 0.95 * waves_per_split(best)) best = splits;
  return best;
}

}  // namespace minisgl::cuda
