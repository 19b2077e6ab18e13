// Sums over ranks through the other GPUs' memory, without flags and fences: the data tell that they have come.
//
// All of a region holds a mark (the word of -0.0f) before a call uses it. A rank writes its data into the regions of
// the others, never the mark (a word that looks like it becomes +0), and waits until no word of what it reads is the
// mark. Regions take turns: call n uses region n % 3 and marks region (n - 1) % 3 again for call n + 2. That is in
// time: a rank that writes for call n + 2 has all data of call n + 1, so every rank is through with call n. Whose turn
// it is is kept on the device, so a call can be recorded and replayed.
//
// Every element is summed in the order of ranks, in f32, and rounded once, so all ranks get the same bits. A wait ends
// after limit_ns, or when the host gives up; what is summed then is NaN.
#include "comm/cuda/peer_kernels.h"
#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"

namespace minisgl::cuda {
namespace {

constexpr std::uint32_t kMark = 0x80000000u;
constexpr std::uint32_t kLost = 0xffffffffu;  // instead of what didn't come: NaN in every dtype
constexpr int kThreads = 256;
// In two shots most of a large sum's time goes into waiting for memory, so more threads have to wait at once.
constexpr int kTwoShotBlocksPerProcessor = 3;
constexpr int kSpinsPerLook = 1024;  // at the clock and at the host's signal

__device__ __forceinline__ bool is_written(const uint4& v) {
  return v.x != kMark && v.y != kMark && v.z != kMark && v.w != kMark;
}

__device__ __forceinline__ uint4 without_mark(uint4 v) {
  return {v.x == kMark ? 0u : v.x, v.y == kMark ? 0u : v.y, v.z == kMark ? 0u : v.z, v.w == kMark ? 0u : v.w};
}

__device__ __forceinline__ uint4 load_peer(const uint4* p) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_peer(uint4* p, const uint4& v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ std::uint64_t now_ns() {
  std::uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
  return now;
}

// What rank `from` writes to p.
__device__ __noinline__ uint4 wait_for(const PeerGroup& group, const uint4* p, int from) {
  const std::uint64_t start = now_ns();
  while (true) {
    for (int spin = 0; spin < kSpinsPerLook; ++spin) {
      const uint4 v = load_peer(p);
      if (is_written(v)) return v;
    }
    if (group.signal->give_up != 0) return {kLost, kLost, kLost, kLost};
    if (now_ns() - start > group.limit_ns) {
      group.signal->missing = static_cast<std::uint32_t>(from) + 1;
      group.signal->give_up = 1;  // no other wait needs to run out
      return {kLost, kLost, kLost, kLost};
    }
  }
}

// Vector i of `data`, whose end may lie within it; zeros behind the end.
template <typename T>
__device__ __forceinline__ uint4 load_vector(const T* data, std::int64_t i, std::int64_t count, bool aligned) {
  constexpr int kWidth = 16 / sizeof(T);
  if (aligned && (i + 1) * kWidth <= count) return *reinterpret_cast<const uint4*>(data + i * kWidth);
  alignas(16) T values[kWidth];
  for (int k = 0; k < kWidth; ++k) values[k] = i * kWidth + k < count ? data[i * kWidth + k] : from_float<T>(0.0f);
  return *reinterpret_cast<const uint4*>(values);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* data, std::int64_t i, std::int64_t count, bool aligned,
                                             const uint4& vector) {
  constexpr int kWidth = 16 / sizeof(T);
  if (aligned && (i + 1) * kWidth <= count) {
    *reinterpret_cast<uint4*>(data + i * kWidth) = vector;
    return;
  }
  alignas(16) T values[kWidth];
  *reinterpret_cast<uint4*>(values) = vector;
  for (int k = 0; k < kWidth; ++k)
    if (i * kWidth + k < count) data[i * kWidth + k] = values[k];
}

// The sum of `own` and of what the other ranks write to parts[rank * stride], rounded.
template <typename T>
__device__ __forceinline__ uint4 sum_vectors(const PeerGroup& group, const uint4* parts, std::int64_t stride,
                                             const uint4& own) {
  constexpr int kWidth = 16 / sizeof(T);
  uint4 vectors[kMaxPeers];
#pragma unroll
  for (int from = 0; from < kMaxPeers; ++from)
    if (from < group.size && from != group.rank) vectors[from] = load_peer(parts + from * stride);
  float sums[kWidth] = {};
#pragma unroll
  for (int from = 0; from < kMaxPeers; ++from) {
    if (from >= group.size) continue;
    if (from == group.rank) vectors[from] = own;
    if (!is_written(vectors[from])) vectors[from] = wait_for(group, parts + from * stride, from);
    const T* values = reinterpret_cast<const T*>(&vectors[from]);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sums[k] += to_float(values[k]);
  }
  uint4 rounded;
  T* values = reinterpret_cast<T*>(&rounded);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = from_float<T>(sums[k]);
  return rounded;
}

__device__ __forceinline__ uint4* region_of(const PeerGroup& group, int rank, std::uint32_t region) {
  return group.memory[rank] + region * group.region_vectors;
}

// What a call finds: its region, and how much of the last one is to be marked again.
struct Call {
  std::uint32_t region;
  std::uint32_t last_slots;
  std::uint32_t last_slot;
};

// In every thread of every block, once. The block that comes last sets the state for the next call, which doesn't look
// before this one has ended: so nobody waits for that. A region has `slots` slots of so many vectors.
__device__ __forceinline__ Call begin_call(const PeerGroup& group, int slots, std::int64_t slot) {
  __shared__ Call call;
  if (threadIdx.x == 0) call = {group.state->region, group.state->last_slots, group.state->last_slot};
  __syncthreads();
  const Call found = call;
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(&group.state->started_blocks, 1u) == gridDim.x - 1)
      *group.state = {(found.region + 1) % kNumRegions, 0, static_cast<std::uint32_t>(slots),
                      static_cast<std::uint32_t>(slot)};
  }
  return found;
}

// Slot `rank` and, where there are two per rank, slot `size + rank` are the rank's own: nobody writes there.
__device__ __forceinline__ void mark_last_region(const PeerGroup& group, const Call& call) {
  uint4* last = region_of(group, group.rank, (call.region + kNumRegions - 1) % kNumRegions);
  for (std::uint32_t slot = 0; slot < call.last_slots; ++slot, last += call.last_slot) {
    if (slot == static_cast<std::uint32_t>(group.rank) || slot == static_cast<std::uint32_t>(group.size + group.rank))
      continue;
    for (std::uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < call.last_slot; i += gridDim.x * blockDim.x)
      last[i] = {kMark, kMark, kMark, kMark};
  }
}

__global__ void mark_kernel(uint4* memory, std::int64_t vectors) {
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < vectors;
       i += std::int64_t{gridDim.x} * blockDim.x)
    memory[i] = {kMark, kMark, kMark, kMark};
}

// A thread sends its vectors and then waits for the same vectors of the others: blocks wait for blocks of the same
// number only, so a call that doesn't fit the device at once still goes on.
template <typename T>
__global__ void __launch_bounds__(kThreads) one_shot_kernel(PeerGroup group, T* data, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t total = num_vectors(count * static_cast<std::int64_t>(sizeof(T)));
  const Call call = begin_call(group, group.size, total);
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = first; i < total; i += step) {
    const uint4 own = without_mark(load_vector(data, i, count, aligned));
#pragma unroll
    for (int to = 0; to < kMaxPeers; ++to)
      if (to < group.size && to != group.rank)
        store_peer(region_of(group, to, call.region) + group.rank * total + i, own);
  }
  mark_last_region(group, call);
  const uint4* parts = region_of(group, group.rank, call.region);
  for (std::int64_t i = first; i < total; i += step) {
    const uint4 own = without_mark(load_vector(data, i, count, aligned));
    store_vector(data, i, count, aligned, sum_vectors<T>(group, parts + i, total, own));
  }
}

// A region: [size, share] parts of this rank's share, then [size, share] sums.
template <typename T>
__global__ void __launch_bounds__(kThreads, kTwoShotBlocksPerProcessor)
    two_shot_kernel(PeerGroup group, T* data, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t total = num_vectors(count * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t share = (total + group.size - 1) / group.size;
  const std::int64_t sums = group.size * share;  // where they begin
  const Call call = begin_call(group, 2 * group.size, share);
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t k = first; k < share; k += step) {
#pragma unroll
    for (int to = 0; to < kMaxPeers; ++to) {
      const std::int64_t i = to * share + k;
      if (to < group.size && to != group.rank && i < total)
        store_peer(region_of(group, to, call.region) + group.rank * share + k,
                   without_mark(load_vector(data, i, count, aligned)));
    }
  }
  mark_last_region(group, call);
  const uint4* own_region = region_of(group, group.rank, call.region);
  for (std::int64_t k = first; k < share && group.rank * share + k < total; k += step) {
    const std::int64_t i = group.rank * share + k;
    const uint4 own = without_mark(load_vector(data, i, count, aligned));
    const uint4 sum = without_mark(sum_vectors<T>(group, own_region + k, share, own));
#pragma unroll
    for (int to = 0; to < kMaxPeers; ++to)
      if (to < group.size && to != group.rank) store_peer(region_of(group, to, call.region) + sums + i, sum);
    store_vector(data, i, count, aligned, sum);
  }
  for (std::int64_t k = first; k < share; k += step) {
#pragma unroll
    for (int from = 0; from < kMaxPeers; ++from) {
      const std::int64_t i = from * share + k;
      if (from >= group.size || from == group.rank || i >= total) continue;
      uint4 sum = load_peer(own_region + sums + i);
      if (!is_written(sum)) sum = wait_for(group, own_region + sums + i, from);
      store_vector(data, i, count, aligned, sum);
    }
  }
}

// The sum over a block, in every thread; once a kernel.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float of_warp[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += of_warp[warp];
  return total;
}

// One row a block. per_thread: vectors of a row in a thread. All that doesn't hang on the other ranks is loaded before
// the wait for them.
template <typename T, int per_thread>
__global__ void __launch_bounds__(1024) fused_kernel(PeerGroup group, uint4* residual, const uint4* delta,
                                                     const float* weight, float eps, int row_vectors, uint4* y) {
  constexpr int kWidth = 16 / sizeof(T);
  const std::int64_t total = std::int64_t{gridDim.x} * row_vectors;
  const std::int64_t row = std::int64_t{blockIdx.x} * row_vectors;
  const auto vector_of = [](int j) { return static_cast<int>(threadIdx.x + j * blockDim.x); };
  let_next_start();
  float weights[per_thread][kWidth];
#pragma unroll
  for (int j = 0; j < per_thread; ++j) {
    if (vector_of(j) >= row_vectors) continue;
#pragma unroll
    for (int k = 0; k < kWidth; k += 4)
      *reinterpret_cast<float4*>(&weights[j][k]) =
          *reinterpret_cast<const float4*>(weight + std::int64_t{vector_of(j)} * kWidth + k);
  }
  wait_for_previous();
  uint4 own[per_thread], kept[per_thread];
#pragma unroll
  for (int j = 0; j < per_thread; ++j) {
    if (vector_of(j) >= row_vectors) continue;
    own[j] = delta[row + vector_of(j)];
    kept[j] = residual[row + vector_of(j)];
  }
  const Call call = begin_call(group, group.size, total);
#pragma unroll
  for (int j = 0; j < per_thread; ++j) {
    if (vector_of(j) >= row_vectors) continue;
    own[j] = without_mark(own[j]);
#pragma unroll
    for (int to = 0; to < kMaxPeers; ++to)
      if (to < group.size && to != group.rank)
        store_peer(region_of(group, to, call.region) + group.rank * total + row + vector_of(j), own[j]);
  }
  mark_last_region(group, call);
  const uint4* parts = region_of(group, group.rank, call.region) + row;
  float squares = 0;
#pragma unroll
  for (int j = 0; j < per_thread; ++j) {
    if (vector_of(j) >= row_vectors) continue;
    const uint4 sum = sum_vectors<T>(group, parts + vector_of(j), total, own[j]);
    T* values = reinterpret_cast<T*>(&kept[j]);
    const T* added = reinterpret_cast<const T*>(&sum);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      values[k] = from_float<T>(to_float(values[k]) + to_float(added[k]));
      squares += to_float(values[k]) * to_float(values[k]);
    }
    residual[row + vector_of(j)] = kept[j];
  }
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(row_vectors * kWidth) + eps);
#pragma unroll
  for (int j = 0; j < per_thread; ++j) {
    if (vector_of(j) >= row_vectors) continue;
    T* values = reinterpret_cast<T*>(&kept[j]);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] = from_float<T>(to_float(values[k]) * inverse * weights[j][k]);
    y[row + vector_of(j)] = kept[j];
  }
}

template <typename Function>
void for_type(DType dtype, Function function) {
  switch (dtype) {
    case DType::f32: return function(float{});
    case DType::f16: return function(half{});
    case DType::bf16: return function(bf16{});
    default: MINISGL_CHECK(false, "a sum of ", dtype_info(dtype).name);
  }
}

dim3 blocks_for(std::int64_t threads, int max_blocks) {
  const std::int64_t blocks = (threads + kThreads - 1) / kThreads;
  return dim3(static_cast<unsigned>(blocks < max_blocks ? blocks : max_blocks));
}

template <typename T, int per_thread>
void launch_fused(const PeerGroup& group, const SumAddRmsNorm& op, int row_vectors, int threads, cudaStream_t stream) {
  launch_kernel(fused_kernel<T, per_thread>, dim3(static_cast<unsigned>(op.rows)), threads, 0, stream, group,
                static_cast<uint4*>(op.residual), static_cast<const uint4*>(op.delta), op.weight, op.eps, row_vectors,
                static_cast<uint4*>(op.y));
}

}  // namespace

void load_peer_kernels() {
  const auto load = [](const auto&... kernels) {
    cudaFuncAttributes attributes;
    (MINISGL_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernels)), ...);
  };
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      load(one_shot_kernel<T>, two_shot_kernel<T>, fused_kernel<T, 1>, fused_kernel<T, 2>, fused_kernel<T, 4>);
    });
  }
}

void mark_unwritten(uint4* memory, std::int64_t vectors, cudaStream_t stream) {
  mark_kernel<<<256, kThreads, 0, stream>>>(memory, vectors);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void one_shot_sum(const PeerGroup& group, void* data, std::int64_t count, DType dtype, int num_processors,
                  cudaStream_t stream) {
  for_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_kernel(one_shot_kernel<T>, blocks_for(num_vectors(row_bytes(dtype, count)), num_processors), kThreads, 0,
                  stream, group, static_cast<T*>(data), count);
  });
}

void two_shot_sum(const PeerGroup& group, void* data, std::int64_t count, DType dtype, int num_processors,
                  cudaStream_t stream) {
  for_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t share = (num_vectors(row_bytes(dtype, count)) + group.size - 1) / group.size;
    launch_kernel(two_shot_kernel<T>, blocks_for(share, kTwoShotBlocksPerProcessor * num_processors), kThreads, 0,
                  stream, group, static_cast<T*>(data), count);
  });
}

bool one_shot_sum_add_rms_norm(const PeerGroup& group, const SumAddRmsNorm& op, cudaStream_t stream) {
  const std::int64_t bytes = row_bytes(op.dtype, op.cols);
  const auto is_aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  if (bytes % 16 != 0 || bytes > kMaxFusedBytes || !is_aligned(op.residual) || !is_aligned(op.delta) ||
      !is_aligned(op.weight) || !is_aligned(op.y))
    return false;
  const auto vectors = static_cast<int>(bytes / 16);
  const int per_thread = (vectors + 1023) / 1024;  // 1 to 4
  const int threads = ((vectors + per_thread - 1) / per_thread + 31) / 32 * 32;
  for_type(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (per_thread == 1) return launch_fused<T, 1>(group, op, vectors, threads, stream);
    if (per_thread == 2) return launch_fused<T, 2>(group, op, vectors, threads, stream);
    return launch_fused<T, 4>(group, op, vectors, threads, stream);
  });
  return true;
}

}  // namespace minisgl::cuda
