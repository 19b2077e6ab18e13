// From a row of logits to one token: the filters and the draw, without a sort.
//
// Every filter keeps a prefix of the tokens' order (sample_team.cuh), so all of them together are one smallest key that
// survives. A histogram over the tokens' distances from the greatest logit (of numbers for top_k, of weights for top_p)
// tells the distance at which that key lies. If few enough tokens are as near, one block goes on with them alone; else
// the key is found digit by digit among those at that distance. Weights are integers, 2^-40 of the largest: their sums
// don't depend on the order of the threads, so the same logits always give the same token. Bound by reading the logits
// once, and by some barriers of the cluster.
#pragma once

#include "kernels/cuda/logit_slice.cuh"
#include "kernels/cuda/processors/bans.cuh"
#include "kernels/cuda/processors/mask.cuh"
#include "kernels/cuda/sample_team.cuh"

namespace minisgl::cuda {

constexpr float kWeightUnit = 0x1p40f;
constexpr float kFurthest = 27.7f;  // exp(-27.7) is just above the unit of weights; what is further has no weight

// Grows with the logit; NaN is the least, with -inf.
__device__ __forceinline__ std::uint32_t order_of(float logit) {
  if (isnan(logit)) logit = -INFINITY;
  if (logit == 0.0f) logit = 0.0f;  // -0 equals 0
  const std::uint32_t bits = __float_as_uint(logit);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ Key key_of(float logit, std::int32_t token) {
  return Key{order_of(logit)} << 32 | (0xffffffffu - static_cast<std::uint32_t>(token));
}
__device__ __forceinline__ std::int32_t token_of(Key key) {
  return static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(key));
}
__device__ __forceinline__ float logit_of(Key key) {
  const auto order = static_cast<std::uint32_t>(key >> 32);
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

// How logits become weights.
struct Scale {
  float max;
  bool infinite;  // the largest is +inf: those share all of the probability
  float inverse;  // 1 / temperature

  __device__ float finite(float x) const { return infinite ? (x == INFINITY ? 0.0f : -INFINITY) : x; }
  __device__ float distance(float logit) const { return (max - logit) * inverse; }  // from the largest
  __device__ bool has_weight(float logit) const { return distance(logit) <= kFurthest; }
  // The weight in units of 2^-40 of the largest.
  __device__ Mass weight(float logit) const {
    return has_weight(logit) ? static_cast<Mass>(expf(-distance(logit)) * kWeightUnit) : 0;
  }
  // The bin of a logit that has a weight.
  __device__ int bin(float logit) const {
    return min(static_cast<int>(distance(logit) * (kBins / kFurthest)), kBins - 1);
  }
};

// A row of logits, and what of it survived.
struct Row {
  Slice slice;
  Scale scale;
  Key cut;  // the smallest key that survives

  // visit(token, logit) for what survived and has a weight.
  template <typename Visit>
  __device__ __forceinline__ void for_each(const Visit& visit) const {
    for_each_logit(slice, [&](std::int32_t token, float x) {
      const float logit = scale.finite(x);
      if (scale.has_weight(logit) && (cut == 0 || key_of(logit, token) >= cut)) visit(token, logit);
    });
  }
  __device__ Mass mass() const {
    Mass sum = 0;
    for_each([&](std::int32_t, float logit) { sum += scale.weight(logit); });
    return sum;
  }
};

enum class Measure { number, mass };

// The distance at which the survivors, from the greatest on, reach `target`.
__device__ inline Crossing cross(const Row& row, Measure measure, Mass target, Team& team) {
  team.clear_bins();
  if (measure == Measure::number) {
    row.for_each([&](std::int32_t, float logit) { team.count_in_bin(row.scale.bin(logit)); });
  } else {
    row.for_each([&](std::int32_t, float logit) { team.add_to_bin(row.scale.bin(logit), row.scale.weight(logit)); });
  }
  return team.cross(target);
}

// The key at which they do, given the distance: by digits of 11, 11 and 10 bits of the logit's order, then of the id.
__device__ inline Key find_key(const Row& row, Measure measure, Mass target, const Crossing& crossing, Team& team) {
  target -= crossing.before;
  Key prefix = 0;
  int rest = 64;
  for (int digit = 0; digit < 6; ++digit) {
    const int bits = digit % 3 == 2 ? 10 : 11, above = rest;
    rest -= bits;
    team.clear_bins();
    row.for_each([&](std::int32_t token, float logit) {
      if (row.scale.bin(logit) != crossing.bin) return;
      const Key key = key_of(logit, token);
      if (above < 64 && key >> above != prefix) return;
      const int greatest = (1 << bits) - 1;
      team.add_to_bin(greatest - static_cast<int>(key >> rest & greatest),
                      measure == Measure::number ? 1 : row.scale.weight(logit));
    });
    const Crossing here = team.cross(target);
    target -= here.before;
    prefix = prefix << bits | static_cast<Key>((1 << bits) - 1 - here.bin);
    if (here.own == target) return prefix << rest;
  }
  return prefix;
}

__device__ inline Mass nucleus(float top_p, Mass total) {
  const double wanted = static_cast<double>(top_p) * (1.0 - 1e-7) * static_cast<double>(total);
  return max(Mass{1}, static_cast<Mass>(ceil(wanted)));
}
__device__ inline Key least_key(float min_p, const Scale& scale) {
  const double lowest = scale.max + log(static_cast<double>(min_p)) / static_cast<double>(scale.inverse);
  return Key{order_of(fminf(static_cast<float>(lowest), scale.max))} << 32;
}
__device__ inline Mass drawn_mass(double uniform, Mass total) {
  return min(static_cast<Mass>(uniform * static_cast<double>(total)), total - 1);
}

// The token of the slice at which the masses of the survivors, added up by id, exceed `target`. Cuts the slice into as
// many parts as there are warps twice, then one warp walks what is left.
__device__ inline std::int32_t walk(const Row& row, Mass target, TeamMemory& memory) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto mass_at = [&](std::int32_t i) -> Mass {
    const float logit = row.scale.finite(row.slice.logits[i]);
    return key_of(logit, row.slice.first + i) >= row.cut ? row.scale.weight(logit) : 0;
  };
  std::int32_t first = 0, last = row.slice.size;
  for (int level = 0; level < 2; ++level) {
    const std::int32_t size = (last - first + kSampleWarps - 1) / kSampleWarps;
    const std::int32_t begin = min(last, first + warp * size), end = min(last, begin + size);
    Mass sum = 0;
    for (std::int32_t i = begin + lane; i < end; i += 32) sum += mass_at(i);
    for (int mask = 16; mask > 0; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    __syncthreads();
    if (lane == 0) memory.of_warp[warp] = sum;
    __syncthreads();
    int part = 0;
    while (part + 1 < kSampleWarps && target >= memory.of_warp[part]) target -= memory.of_warp[part++];
    first = min(last, first + part * size);
    last = min(last, first + size);
  }
  std::int32_t token = first;
  for (std::int32_t start = first; start < last; start += 32) {
    const std::int32_t i = start + lane;
    Mass scan = i < last ? mass_at(i) : 0;
    for (int offset = 1; offset < 32; offset <<= 1) {
      const Mass before = __shfl_up_sync(0xffffffffu, scan, offset);
      if (lane >= offset) scan += before;
    }
    const unsigned reached = __ballot_sync(0xffffffffu, scan > target);
    if (reached != 0) {
      token = start + __ffs(static_cast<int>(reached)) - 1;
      break;
    }
    target -= __shfl_sync(0xffffffffu, scan, 31);
  }
  return row.slice.first + token;
}

// All filters and the draw among `count` tokens, which hold all that can survive. `top_p_mass`: what of the row top_p
// keeps, or 0: it is a share of what top_k leaves. One block; each token is compared with all others.
__device__ inline std::int32_t draw_among_candidates(const QueryEntry& query, const Scale& scale, int count,
                                                     Mass top_p_mass, Team& team) {
  TeamMemory& memory = team.memory();
  const Key* keys = memory.candidates.key;
  Mass* masses = memory.candidates.mass;
  constexpr int kEach = kMostCandidates / kSampleThreads;
  Key key[kEach];
  Mass mass[kEach], above[kEach] = {};
  int rank[kEach] = {};
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int own = static_cast<int>(threadIdx.x) + e * kSampleThreads;
    key[e] = own < count ? keys[own] : 0;
    mass[e] = own < count ? scale.weight(logit_of(key[e])) : 0;
    if (own < count) masses[own] = mass[e];
  }
  __syncthreads();
  const auto survivors = [&](const auto& visit) {
    for (int i = 0; i < count; ++i) {
      const Key other = keys[i];
      const Mass other_mass = masses[i];
#pragma unroll
      for (int e = 0; e < kEach; ++e) visit(e, other, other_mass);
    }
  };
  const auto keep = [&](const auto& kept) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int own = static_cast<int>(threadIdx.x) + e * kSampleThreads;
      if (own < count && !kept(e)) masses[own] = mass[e] = 0;
    }
    __syncthreads();
  };
  const auto total = [&] {
    Mass sum = 0;
#pragma unroll
    for (int e = 0; e < kEach; ++e) sum += mass[e];
    return team.block_sum(sum);
  };

  survivors([&](int e, Key other, Mass other_mass) {
    if (other > key[e]) {
      ++rank[e];
      above[e] += other_mass;
    }
  });
  if (query.top_k > 0) keep([&](int e) { return rank[e] < query.top_k; });
  if (query.top_p < 1.0f) {
    const Mass target = top_p_mass != 0 ? top_p_mass : nucleus(query.top_p, total());
    keep([&](int e) { return above[e] < target; });
  }
  if (query.min_p > 0.0f) {
    const Key least = least_key(query.min_p, scale);
    keep([&](int e) { return key[e] >= least; });
  }
  const Mass target = drawn_mass(query.uniform, total());
  Mass before[kEach] = {};
  survivors([&](int e, Key other, Mass other_mass) {
    if (token_of(other) < token_of(key[e])) before[e] += other_mass;
  });
#pragma unroll
  for (int e = 0; e < kEach; ++e)
    if (before[e] <= target && before[e] + mass[e] > target) memory.token = token_of(key[e]);
  __syncthreads();
  return memory.token;
}

// The survivors that are no further from the greatest logit than `bin`, in the first block's candidates; their number,
// or more than kMostCandidates and no candidates.
__device__ inline int gather(const Row& row, int bin, Team& team) {
  Mass number = 0;
  row.for_each([&](std::int32_t, float logit) { number += row.scale.bin(logit) <= bin ? 1 : 0; });
  if (threadIdx.x == 0) team.memory().num_candidates = 0;
  const Team::Sums sums = team.sum(number);
  if (sums.all > kMostCandidates) return kMostCandidates + 1;
  auto* candidates = in_block(&team.memory().candidates, 0);
  row.for_each([&](std::int32_t token, float logit) {
    if (row.scale.bin(logit) > bin) return;
    const int place = static_cast<int>(sums.before) + atomicAdd(&team.memory().num_candidates, 1);
    candidates->key[place] = key_of(logit, token);
  });
  cluster_sync();
  return static_cast<int>(sums.all);
}

// For a row without a single number: the lowest token that is neither banned nor masked; where there is none, the
// lowest that the mask allows, else 0.
__device__ inline std::int32_t first_allowed(const StepData& step, const QueryEntry& query, std::int32_t vocab) {
  std::int32_t masked_in = -1;
  for (std::int32_t token = 0; token < vocab; ++token) {
    if (!mask_allows(step, query, token)) continue;
    if (!is_banned(step, query, token)) return token;
    if (masked_in < 0) masked_in = token;
  }
  return max(masked_in, 0);
}

__device__ inline Key greatest_key(const Slice& slice, Key below, Team& team) {
  Key best = 0;
  for_each_logit(slice, [&](std::int32_t token, float logit) {
    if (order_of(logit) < static_cast<std::uint32_t>(best >> 32)) return;
    const Key key = key_of(logit, token);
    if (key < below && key > best) best = key;
  });
  return team.max(best);
}

// The token, in one block of the team; -1 in the others.
__device__ inline std::int32_t draw(const StepData& step, const QueryEntry& query, const Slice& slice,
                                    std::int32_t vocab, Team& team) {
  const Key best = greatest_key(slice, ~Key{0}, team);
  Row row{.slice = slice, .scale = {.max = logit_of(best), .infinite = false, .inverse = 1.0f}, .cut = 0};
  const bool leads = team.rank() == 0;
  if (row.scale.max == -INFINITY) return leads ? first_allowed(step, query, vocab) : -1;
  if (query.temperature == 0.0f) return leads ? token_of(best) : -1;
  if (row.scale.max == INFINITY) {
    row.scale.infinite = true;
    row.scale.max = 0.0f;
  }
  row.scale.inverse = fminf(1.0f / query.temperature, 3.402823466e38f);

  const bool top_k = query.top_k > 0 && query.top_k < vocab, top_p = query.top_p < 1.0f;
  if (top_k || top_p) {
    const Measure measure = top_k ? Measure::number : Measure::mass;
    Mass target = top_k ? static_cast<Mass>(query.top_k) : nucleus(query.top_p, team.sum(row.mass()).all);
    Crossing crossing = cross(row, measure, target, team);
    const int count = gather(row, crossing.bin < 0 ? kBins - 1 : crossing.bin, team);
    if (count <= kMostCandidates)
      return leads ? draw_among_candidates(query, row.scale, count, top_k ? 0 : target, team) : -1;
    if (crossing.bin >= 0) row.cut = find_key(row, measure, target, crossing, team);
    if (top_k && top_p) {
      target = nucleus(query.top_p, team.sum(row.mass()).all);
      crossing = cross(row, Measure::mass, target, team);
      row.cut = max(row.cut, find_key(row, Measure::mass, target, crossing, team));
    }
  }
  if (query.min_p > 0.0f) row.cut = max(row.cut, least_key(query.min_p, row.scale));
  const Team::Sums sums = team.sum(row.mass());
  const Mass target = drawn_mass(query.uniform, sums.all);
  if (target < sums.before || target >= sums.before + sums.own) return -1;
  return walk(row, target - sums.before, team.memory());
}

}  // namespace minisgl::cuda
