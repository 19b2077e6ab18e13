// From logits to tokens on the device: kernels/sampling.h for a whole batch, one row a block, without a sort.
//
// Tokens are ordered by a 64-bit key: higher logit first, then lower id. Every filter keeps a prefix of that order, so
// all of them together are one smallest key that survives. It is found digit by digit from histograms: of tokens for
// top_k, of weights for top_p. Weights are integers, 2^-40 of the largest: their sums don't depend on the order of the
// threads, so the same logits always give the same token. Bound by reading the row from the second-level cache, once
// for each pass: 1 for greedy, 3 for a plain draw, 3 to 6 more for each of top_k and top_p.
#include "core/cuda.h"
#include "core/cuda_launch.h"
#include "core/cuda_math.cuh"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr std::uint32_t kPromptBit = 0x80000000u;
constexpr float kWeightUnit = 0x1p40f;

using Key = std::uint64_t;
using Mass = unsigned long long;

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

// visit(i, logits[i]) for a block's share of a row; several loads are in flight together.
template <typename Visit>
__device__ __forceinline__ void for_each_logit(const float* logits, std::int32_t vocab, const Visit& visit) {
  constexpr int kUnroll = 4, kWidth = 4;
  std::int32_t start = 0;
  if (vocab % kWidth == 0) {  // then every row is aligned
    for (; start + kThreads * kWidth * kUnroll <= vocab; start += kThreads * kWidth * kUnroll) {
      float4 values[kUnroll];
      const std::int32_t first = start + static_cast<std::int32_t>(threadIdx.x) * kWidth;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        values[u] = *reinterpret_cast<const float4*>(logits + first + u * kThreads * kWidth);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const std::int32_t i = first + u * kThreads * kWidth;
        visit(i, values[u].x);
        visit(i + 1, values[u].y);
        visit(i + 2, values[u].z);
        visit(i + 3, values[u].w);
      }
    }
  }
#pragma unroll 4
  for (std::int32_t i = start + static_cast<std::int32_t>(threadIdx.x); i < vocab; i += kThreads) visit(i, logits[i]);
}

// Shared memory of a block; what a function leaves here, the next may overwrite after a barrier.
struct Shared {
  Mass bins[kBins];
  Mass of_warp[kWarps];
  Key key_of_warp[kWarps];
  Mass chosen_mass;
  std::int32_t chosen;
};

__device__ Key block_max(Key x, Shared& shared) {
  for (int mask = 16; mask > 0; mask >>= 1) {
    const Key other = __shfl_xor_sync(0xffffffffu, x, mask);
    x = other > x ? other : x;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.key_of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) x = shared.key_of_warp[i] > x ? shared.key_of_warp[i] : x;
  return x;
}

__device__ __forceinline__ Mass warp_total(Mass x) {
  for (int mask = 16; mask > 0; mask >>= 1) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

__device__ Mass block_total(Mass x, Shared& shared) {
  x = warp_total(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  Mass total = 0;
  for (int i = 0; i < kWarps; ++i) total += shared.of_warp[i];
  return total;
}

// A row of logits, and what of it survived.
struct Row {
  const float* logits;
  std::int32_t vocab;
  float max;
  bool infinite;  // the largest is +inf: those share all of the probability
  float scale;    // 1 / temperature
  Key cut;        // the smallest key that survives

  __device__ float finite(float x) const { return infinite ? (x == INFINITY ? 0.0f : -INFINITY) : x; }
  __device__ float logit(std::int32_t i) const { return finite(logits[i]); }
  // In units of 2^-40 of the largest.
  __device__ Mass weight(float logit) const {
    const float distance = (logit - max) * scale;
    return distance >= -40.0f ? static_cast<Mass>(expf(distance) * kWeightUnit) : 0;
  }
};

// The smallest key such that the masses of it and all greater ones reach `target`; mass(i, logit) of every token. Keys
// below row.cut have none. Digits of 11, 11 and 10 bits of the logit's order, then of the id.
template <typename MassOf>
__device__ Key select(const Row& row, Mass target, const MassOf& mass_of, Shared& shared) {
  Key prefix = 0;
  int rest = 64;
  for (int digit = 0; digit < 6; ++digit) {
    const int bits = digit % 3 == 2 ? 10 : 11;
    const int above = rest;
    rest -= bits;
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    for_each_logit(row.logits, row.vocab, [&](std::int32_t i, float x) {
      const float logit = row.finite(x);
      const Key key = key_of(logit, i);
      if (key < row.cut || (above < 64 && key >> above != prefix)) return;
      const Mass mass = mass_of(logit);
      if (mass > 0) atomicAdd(&shared.bins[key >> rest & (kBins / (bits == 10 ? 2 : 1) - 1)], mass);
    });
    __syncthreads();
    // Two bins a thread, from the highest down; the sums of all bins above come from a scan.
    const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
    const Mass first = shared.bins[high], second = shared.bins[high - 1];
    Mass scan = first + second;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int offset = 1; offset < 32; offset <<= 1) {
      const Mass before = __shfl_up_sync(0xffffffffu, scan, offset);
      if (lane >= offset) scan += before;
    }
    if (lane == 31) shared.of_warp[warp] = scan;
    if (threadIdx.x == 0) shared.chosen = -1;
    __syncthreads();
    Mass before = scan - first - second;
    for (int i = 0; i < warp; ++i) before += shared.of_warp[i];
    if (before < target && before + first >= target) {
      shared.chosen = high;
      shared.chosen_mass = before;
    } else if (before + first < target && before + first + second >= target) {
      shared.chosen = high - 1;
      shared.chosen_mass = before + first;
    }
    __syncthreads();
    if (shared.chosen < 0) return row.cut;  // less mass than wanted: everything survives
    target -= shared.chosen_mass;
    prefix = prefix << bits | static_cast<Key>(shared.chosen);
    if (shared.bins[shared.chosen] == target) return prefix << rest;
  }
  return prefix;
}

// The token at which the masses of the survivors, added up by id, exceed `target`. Halves the row twice by 32 parts,
// then one warp walks what is left.
__device__ std::int32_t walk(const Row& row, Mass target, Shared& shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto mass_at = [&](std::int32_t i) -> Mass {
    const float logit = row.logit(i);
    return key_of(logit, i) >= row.cut ? row.weight(logit) : 0;
  };
  std::int32_t first = 0, last = row.vocab;
  for (int level = 0; level < 2; ++level) {
    const std::int32_t size = (last - first + kWarps - 1) / kWarps;
    const std::int32_t begin = min(last, first + warp * size), end = min(last, begin + size);
    Mass sum = 0;
    for (std::int32_t i = begin + lane; i < end; i += 32) sum += mass_at(i);
    sum = warp_total(sum);
    __syncthreads();
    if (lane == 0) shared.of_warp[warp] = sum;
    __syncthreads();
    int part = 0;
    while (part + 1 < kWarps && target >= shared.of_warp[part]) target -= shared.of_warp[part++];
    first = min(last, first + part * size);
    last = min(last, first + size);
  }
  std::int32_t token = first;
  for (std::int32_t start = first; start < last; start += 32) {
    const std::int32_t i = start + lane;
    const Mass mass = i < last ? mass_at(i) : 0;
    Mass scan = mass;
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
  return token;
}

// logits -> adjusted, with bias, penalties and bans; the caller's logits stay as they are for log probabilities.
__device__ void adjust(const StepData& step, const QueryEntry& query, const float* logits, std::int32_t vocab,
                       const std::uint32_t* seen, float* adjusted) {
  for (std::int32_t i = threadIdx.x; i < vocab; i += kThreads) adjusted[i] = logits[i];
  __syncthreads();
  if (threadIdx.x == 0) {  // a token may stand in the list twice
    for (std::int32_t i = 0; i < query.num_bias; ++i) {
      const BiasEntry entry = step.biases[query.first_bias + i];
      adjusted[entry.token] += entry.bias;
    }
  }
  __syncthreads();
  if (seen != nullptr) {
    for (std::int32_t i = threadIdx.x; i < vocab; i += kThreads) {
      const std::uint32_t entry = seen[i];
      if (entry == 0) continue;
      const std::uint32_t count = entry & ~kPromptBit;
      float x = adjusted[i];
      if (query.repetition_penalty != 1.0f) x = x > 0 ? x / query.repetition_penalty : x * query.repetition_penalty;
      if (count != 0) x -= query.frequency_penalty * static_cast<float>(count) + query.presence_penalty;
      adjusted[i] = x;
    }
    __syncthreads();
  }
  for (std::int32_t i = threadIdx.x; i < query.num_banned; i += kThreads)
    adjusted[step.banned[query.first_banned + i]] = -INFINITY;
  __syncthreads();
}

// For a row without a single number: the lowest id that is not banned.
__device__ std::int32_t first_allowed(const StepData& step, const QueryEntry& query, std::int32_t vocab) {
  for (std::int32_t token = 0; token < vocab; ++token) {
    bool banned = false;
    for (std::int32_t i = 0; i < query.num_banned && !banned; ++i)
      banned = step.banned[query.first_banned + i] == token;
    if (!banned) return token;
  }
  return 0;
}

__device__ Key greatest_key(const float* logits, std::int32_t vocab, Key below, Shared& shared) {
  Key best = 0;
  for_each_logit(logits, vocab, [&](std::int32_t i, float logit) {
    const Key key = key_of(logit, i);
    if (key < below && key > best) best = key;
  });
  return block_max(best, shared);
}

__device__ std::int32_t draw(const StepData& step, const QueryEntry& query, const float* logits, std::int32_t vocab,
                             Shared& shared) {
  const Key best = greatest_key(logits, vocab, ~Key{0}, shared);
  Row row{.logits = logits, .vocab = vocab, .max = logits[token_of(best)], .infinite = false, .scale = 1.0f, .cut = 0};
  if (isnan(row.max) || row.max == -INFINITY) return first_allowed(step, query, vocab);
  if (query.temperature == 0.0f) return token_of(best);
  if (row.max == INFINITY) {
    row.infinite = true;
    row.max = 0.0f;
  }
  row.scale = fminf(1.0f / query.temperature, 3.402823466e38f);

  if (query.top_k > 0 && query.top_k < vocab) {
    row.cut = select(row, static_cast<Mass>(query.top_k), [](float) -> Mass { return 1; }, shared);
  }
  const auto total_mass = [&] {
    Mass sum = 0;
    for_each_logit(logits, vocab, [&](std::int32_t i, float x) {
      const float logit = row.finite(x);
      if (key_of(logit, i) >= row.cut) sum += row.weight(logit);
    });
    return block_total(sum, shared);
  };
  if (query.top_p < 1.0f) {
    const double wanted = static_cast<double>(query.top_p) * (1.0 - 1e-7) * static_cast<double>(total_mass());
    const Mass target = max(Mass{1}, static_cast<Mass>(ceil(wanted)));
    row.cut = select(row, target, [&](float logit) { return row.weight(logit); }, shared);
  }
  if (query.min_p > 0.0f) {
    const double lowest = row.max + log(static_cast<double>(query.min_p)) / static_cast<double>(row.scale);
    const Key cut = Key{order_of(fminf(static_cast<float>(lowest), row.max))} << 32;
    if (cut > row.cut) row.cut = cut;
  }
  const Mass total = total_mass();
  const Mass target = min(static_cast<Mass>(query.uniform * static_cast<double>(total)), total - 1);
  return walk(row, target, shared);
}

// Log probabilities of the model's own distribution.
struct LogSoftmax {
  float max;
  double log_total;
  __device__ float of(float logit) const {
    if (isnan(logit) || logit == -INFINITY) return -INFINITY;
    const double distance = logit == max ? 0.0 : static_cast<double>(logit) - max;
    return static_cast<float>(distance - log_total);
  }
};

__device__ LogSoftmax log_softmax(const float* logits, std::int32_t vocab, Shared& shared) {
  const float max = logits[token_of(greatest_key(logits, vocab, ~Key{0}, shared))];
  if (isnan(max) || max == -INFINITY) return {-INFINITY, 0.0};
  Row row{.logits = logits, .vocab = vocab, .max = max, .infinite = max == INFINITY, .scale = 1.0f, .cut = 0};
  if (row.infinite) row.max = 0.0f;
  // Doubles would be as good, but their sum would depend on the order of the threads.
  Mass sum = 0;
  for_each_logit(logits, vocab, [&](std::int32_t, float x) { sum += row.weight(row.finite(x)); });
  return {max, log(static_cast<double>(block_total(sum, shared))) - log(static_cast<double>(kWeightUnit))};
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const StepData step, const float* all_logits, float* all_adjusted, std::int32_t vocab,
                  std::uint32_t* all_seen, OutputEntry* outputs) {
  __shared__ Shared shared;
  let_next_start();
  wait_for_previous();
  const QueryEntry query = step.queries[blockIdx.x];
  if (!query.active) return;
  const float* logits = all_logits + static_cast<std::int64_t>(blockIdx.x) * vocab;
  OutputEntry& output = outputs[blockIdx.x];

  std::int32_t token = query.target;
  if (token < 0) {
    std::uint32_t* seen = query.seen_slot < 0 ? nullptr : all_seen + static_cast<std::int64_t>(query.seen_slot) * vocab;
    const float* adjusted = logits;
    if (seen != nullptr || query.num_bias > 0 || query.num_banned > 0) {
      float* target = all_adjusted + static_cast<std::int64_t>(blockIdx.x) * vocab;
      adjust(step, query, logits, vocab, seen, target);
      adjusted = target;
    }
    token = draw(step, query, adjusted, vocab, shared);
    if (seen != nullptr && threadIdx.x == 0) ++seen[token];
  }
  if (threadIdx.x == 0) {
    output.token = step.drawn[blockIdx.x] = token;
    output.logprob = 0.0f;
    output.num_top = 0;
  }
  if (query.num_top < 0) return;

  const LogSoftmax softmax = log_softmax(logits, vocab, shared);
  Key below = ~Key{0};
  for (std::int32_t i = 0; i < query.num_top && i < vocab; ++i) {
    below = greatest_key(logits, vocab, below, shared);
    if (threadIdx.x == 0) {
      output.top_token[i] = token_of(below);
      output.top_logprob[i] = softmax.of(logits[token_of(below)]);
    }
  }
  if (threadIdx.x == 0) {
    output.logprob = softmax.of(logits[token]);
    output.num_top = min(query.num_top, vocab);
  }
}

__global__ void mark_prompt_kernel(std::uint32_t* seen, const std::int32_t* tokens, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) atomicOr(seen + tokens[i], kPromptBit);
}

__global__ void count_output_kernel(std::uint32_t* seen, const std::int32_t* tokens, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) atomicAdd(seen + tokens[i], 1u);
}

}  // namespace

void mark_prompt(std::uint32_t* seen, const std::int32_t* tokens, int count, cudaStream_t stream) {
  if (count == 0) return;
  mark_prompt_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(seen, tokens, count);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void count_output(std::uint32_t* seen, const std::int32_t* tokens, int count, cudaStream_t stream) {
  if (count == 0) return;
  count_output_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(seen, tokens, count);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void sample(const StepData& step, const float* logits, float* adjusted, std::int64_t vocab, std::uint32_t* seen,
            OutputEntry* outputs, cudaStream_t stream) {
  if (step.num_logits == 0) return;
  launch_kernel(sample_kernel, dim3(static_cast<unsigned>(step.num_logits)), kThreads, 0, stream, step, logits,
                adjusted, static_cast<std::int32_t>(vocab), seen, outputs);
}

}  // namespace minisgl::cuda
