// From logits to tokens on the device: kernels/cpu/sampling.h for a whole batch. A cluster of blocks takes a row; each
// keeps its slice in shared memory, where it fits. The chain of logit processors (processors.cuh), the draw (draw.cuh),
// log probabilities.
#include "kernels/cuda/draw.cuh"
#include "kernels/cuda/processors.cuh"

namespace minisgl::cuda {
namespace {

// Copies a slice of a row to `to`.
__device__ void copy_slice(const Slice& slice, float* to) {
  const float* from = slice.logits;
  std::int32_t copied = 0;
  if (reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
    copied = slice.size / 4 * 4;
    for (std::int32_t i = 4 * static_cast<std::int32_t>(threadIdx.x); i < copied; i += 4 * kSampleThreads)
      copy_16_async(to + i, from + i, true);
    commit_copies();
    wait_copies<0>();
  }
  for (std::int32_t i = copied + static_cast<std::int32_t>(threadIdx.x); i < slice.size; i += kSampleThreads)
    to[i] = from[i];
  __syncthreads();
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

__device__ LogSoftmax log_softmax(const Slice& slice, Team& team) {
  const float max = logit_of(greatest_key(slice, ~Key{0}, team));
  if (max == -INFINITY) return {-INFINITY, 0.0};
  const bool infinite = max == INFINITY;
  const Row row{
      .slice = slice, .scale = {.max = infinite ? 0.0f : max, .infinite = infinite, .inverse = 1.0f}, .cut = 0};
  // Doubles would be as good, but their sum would depend on the order of the threads.
  const Mass total = team.sum(row.mass()).all;
  return {max, log(static_cast<double>(total)) - log(static_cast<double>(kWeightUnit))};
}

// All threads of a block copy a query to shared memory.
__device__ __forceinline__ void load_query(const QueryEntry& from, QueryEntry& to) {
  constexpr int kWords = sizeof(QueryEntry) / sizeof(std::uint32_t);
  static_assert(sizeof(QueryEntry) % sizeof(std::uint32_t) == 0 && kWords <= kSampleThreads);
  if (threadIdx.x < kWords) {
    reinterpret_cast<std::uint32_t*>(&to)[threadIdx.x] = reinterpret_cast<const std::uint32_t*>(&from)[threadIdx.x];
  }
  __syncthreads();
}

// grid: blocks of a row, which are a cluster; rows. slice_size: tokens of a block; in shared memory if `is_shared`.
__global__ void __launch_bounds__(kSampleThreads)
    sample_kernel(const StepData step, const float* all_logits, float* all_adjusted, std::int32_t vocab,
                  std::int32_t slice_size, bool is_shared, std::uint32_t* all_seen, OutputEntry* outputs) {
  __shared__ TeamMemory memory;
  extern __shared__ __align__(16) float shared_slice[];
  let_next_start();
  wait_for_previous();
  // In registers it would drive what the loops need out of them.
  __shared__ QueryEntry query;
  load_query(step.queries[blockIdx.y], query);
  if (!query.active) return;
  Team team(memory, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  cluster_sync();  // all blocks have begun: their shared memory may be used
  const float* logits = all_logits + static_cast<std::int64_t>(blockIdx.y) * vocab;
  const std::int32_t first = min(vocab, team.rank() * slice_size);
  const Slice own{.logits = logits + first, .first = first, .size = min(slice_size, vocab - first)};
  OutputEntry& output = outputs[blockIdx.y];

  std::int32_t token = team.rank() == 0 ? query.target : -1;
  if (query.target < 0) {
    std::uint32_t* seen = query.seen_slot < 0 ? nullptr : all_seen + static_cast<std::int64_t>(query.seen_slot) * vocab;
    const bool changes = has_processors(query, seen);
    // What is only looked through for its greatest is read where it is.
    const bool reads_once = query.temperature == 0.0f && !changes;
    Slice slice = own;
    if ((is_shared && !reads_once) || changes) {
      float* target = all_adjusted + static_cast<std::int64_t>(blockIdx.y) * vocab + first;
      if (is_shared) {
        target = shared_slice;
        copy_slice(own, target);
      } else {
        for (std::int32_t i = threadIdx.x; i < own.size; i += kSampleThreads) target[i] = own.logits[i];
        __syncthreads();
      }
      if (changes) apply_processors(step, query, own, seen, target);
      slice.logits = target;
    }
    token = draw(step, query, slice, vocab, team);
    if (seen != nullptr && token >= 0 && threadIdx.x == 0) ++seen[token];
  }
  const bool answers = token >= 0 && threadIdx.x == 0;
  if (answers) {
    output.token = step.drawn[blockIdx.y] = token;
    output.logprob = 0.0f;
    output.num_top = 0;
  }
  if (query.num_top < 0) return;

  const LogSoftmax softmax = log_softmax(own, team);
  Key below = ~Key{0};
  for (std::int32_t i = 0; i < query.num_top && i < vocab; ++i) {
    below = greatest_key(own, below, team);
    if (team.rank() == 0 && threadIdx.x == 0) {
      output.top_token[i] = token_of(below);
      output.top_logprob[i] = softmax.of(logit_of(below));
    }
  }
  if (answers) {
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

// Whether the GPU has clusters and the kernel it runs was compiled for them, not translated from what is older.
bool has_clusters() {
  static const bool answer = [] {
    int device = 0, major = 0, minor = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    const int capability = 100 * major + 10 * minor;
    for (const int compiled : {__CUDA_ARCH_LIST__})
      if (compiled >= 900 && compiled <= capability) return true;
    return false;
  }();
  return answer;
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
  constexpr std::size_t kMostShared = 96 * 1024;  // bytes of a block, so that two fit a processor
  const int blocks = has_clusters() ? kMostBlocks : 1;
  const std::int64_t slice = (vocab + 4 * blocks - 1) / (4 * blocks) * 4;  // whole vectors
  const std::size_t bytes = static_cast<std::size_t>(slice) * sizeof(float);
  const bool is_shared = blocks > 1 && bytes <= kMostShared;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared));
  launch_clusters(sample_kernel, blocks, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(step.num_logits)),
                  kSampleThreads, is_shared ? bytes : 0, stream, step, logits, adjusted,
                  static_cast<std::int32_t>(vocab), static_cast<std::int32_t>(slice), is_shared, seen, outputs);
}

}  // namespace minisgl::cuda
