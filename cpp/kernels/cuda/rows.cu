// Operations on rows and heads. All are bound by the bytes of the rows that they read and write once.
#include <cuda_fp8.h>

#include <type_traits>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// The sum over a block, in every thread.
__device__ float block_sum(float x) {
  __shared__ float of_warp[kWarps];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < kWarps; ++i) total += of_warp[i];
  return total;
}

// One row a block, copied from source(row).
__global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(const bf16* from, const std::int32_t* source, std::int64_t cols, bf16* to) {
  let_next_start();
  wait_for_previous();
  const bf16* x = from + source[blockIdx.x] * cols;
  bf16* y = to + blockIdx.x * cols;
  if (cols % 8 == 0) {
    for (std::int64_t i = threadIdx.x; i < cols / 8; i += kThreads)
      reinterpret_cast<uint4*>(y)[i] = reinterpret_cast<const uint4*>(x)[i];
  } else {
    for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) y[i] = x[i];
  }
}

// One row a block. width: elements of one access. The second pass finds the row in the caches.
template <int width>
__global__ void __launch_bounds__(kThreads)
    add_rms_norm_kernel(bf16* x, const bf16* delta, const float* weight, float eps, std::int64_t cols, bf16* y) {
  struct alignas(2 * width) Vector {
    bf16 v[width];
  };
  let_next_start();
  wait_for_previous();
  const std::int64_t first = blockIdx.x * cols;
  float squares = 0;
  for (std::int64_t i = threadIdx.x * width; i < cols; i += kThreads * width) {
    Vector values = *reinterpret_cast<const Vector*>(x + first + i);
    if (delta != nullptr) {
      const Vector added = *reinterpret_cast<const Vector*>(delta + first + i);
#pragma unroll
      for (int k = 0; k < width; ++k) values.v[k] = __float2bfloat16(to_float(values.v[k]) + to_float(added.v[k]));
      *reinterpret_cast<Vector*>(x + first + i) = values;
    }
#pragma unroll
    for (int k = 0; k < width; ++k) squares += to_float(values.v[k]) * to_float(values.v[k]);
  }
  const float inverse = rsqrtf(block_sum(squares) / static_cast<float>(cols) + eps);
  for (std::int64_t i = threadIdx.x * width; i < cols; i += kThreads * width) {
    Vector values = *reinterpret_cast<const Vector*>(x + first + i);
#pragma unroll
    for (int k = 0; k < width; ++k) values.v[k] = __float2bfloat16(to_float(values.v[k]) * inverse * weight[i + k]);
    *reinterpret_cast<Vector*>(y + first + i) = values;
  }
}

// The same for norms of any kind. One row a block; a thread comes back to the elements that it wrote.
struct AnyNormArgs {
  bf16* x;
  const bf16* delta;
  Norm added, norm;
  std::int64_t cols;
  bf16* y;
};

__device__ float block_sum_again(float x) {
  __syncthreads();  // the sum before is read
  return block_sum(x);
}

// value(i) summed over the row.
template <typename Value>
__device__ float row_sum(std::int64_t cols, Value value) {
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) sum += value(i);
  return block_sum_again(sum);
}

// What makes x's norm of x: (x - mean) * inverse * weight.
struct RowScale {
  float mean, inverse;
};
template <typename Value>
__device__ RowScale row_scale(const Norm& norm, std::int64_t cols, Value value) {
  const float mean = norm.centered ? row_sum(cols, value) / static_cast<float>(cols) : 0.0f;
  const float squares = row_sum(cols, [&](std::int64_t i) { return (value(i) - mean) * (value(i) - mean); });
  return {mean, rsqrtf(squares / static_cast<float>(cols) + norm.eps)};
}

__global__ void __launch_bounds__(kThreads) any_norm_kernel(AnyNormArgs args) {
  let_next_start();
  wait_for_previous();
  const std::int64_t cols = args.cols;
  bf16* x = args.x + blockIdx.x * cols;
  if (args.delta != nullptr) {
    const bf16* delta = args.delta + blockIdx.x * cols;
    const auto value = [&](std::int64_t i) { return to_float(delta[i]); };
    const bool normed = args.added.weight != nullptr;
    const RowScale scale = normed ? row_scale(args.added, cols, value) : RowScale{0.0f, 1.0f};
    for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) {
      const float term = (value(i) - scale.mean) * scale.inverse * (normed ? args.added.weight[i] : 1.0f);
      x[i] = __float2bfloat16(to_float(x[i]) + term);
    }
  }
  if (args.norm.weight == nullptr) return;
  const auto value = [&](std::int64_t i) { return to_float(x[i]); };
  const RowScale scale = row_scale(args.norm, cols, value);
  bf16* y = args.y + blockIdx.x * cols;
  for (std::int64_t i = threadIdx.x; i < cols; i += kThreads)
    y[i] = __float2bfloat16((value(i) - scale.mean) * scale.inverse * args.norm.weight[i]);
}

template <Activation activation>
__device__ float activate(float x) {
  if constexpr (activation == Activation::silu) return x / (1.0f + __expf(-x));
  return x / (1.0f + __expf(-1.5957691216f * x * (1.0f + 0.044715f * x * x)));  // half of 1 + tanh is this quotient
}

template <int width, Activation activation>
__global__ void __launch_bounds__(kThreads)
    gate_rows_kernel(const bf16* z, std::int64_t rows, std::int64_t cols, bf16* y) {
  struct alignas(2 * width) Vector {
    bf16 v[width];
  };
  let_next_start();
  wait_for_previous();
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * width;
  if (at >= rows * cols) return;
  const bf16* gate = z + at / cols * 2 * cols + at % cols;
  const Vector gates = *reinterpret_cast<const Vector*>(gate);
  const Vector ups = *reinterpret_cast<const Vector*>(gate + cols);
  Vector out;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    out.v[k] = __float2bfloat16(activate<activation>(to_float(gates.v[k])) * to_float(ups.v[k]));
  }
  *reinterpret_cast<Vector*>(y + at) = out;
}

__global__ void __launch_bounds__(kThreads) scale_and_cap_kernel(float* x, std::int64_t count, float scale, float cap) {
  let_next_start();
  wait_for_previous();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) x[i] = cap == 0.0f ? x[i] * scale : cap * tanhf(x[i] * scale / cap);
}

// A row's queries (blockIdx.y 0) or keys (1) a block.
__global__ void __launch_bounds__(kThreads)
    head_square_sums_kernel(const bf16* qkv, std::int64_t row_size, std::int64_t query_size, std::int64_t key_size,
                            float* sums) {
  let_next_start();
  wait_for_previous();
  const bool is_key = blockIdx.y == 1;
  const bf16* x = qkv + blockIdx.x * row_size + (is_key ? query_size : 0);
  const float sum =
      row_sum(is_key ? key_size : query_size, [&](std::int64_t i) { return to_float(x[i]) * to_float(x[i]); });
  if (threadIdx.x == 0) sums[2 * blockIdx.x + blockIdx.y] = sum;
}

__global__ void __launch_bounds__(512) read_all_kernel(const uint4* data, std::size_t count, std::uint32_t* sink) {
  constexpr int kUnroll = 8;
  std::uint32_t mix = 0;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 values[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) values[k] = __ldcs(data + i + k * stride);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) mix ^= values[k].x ^ values[k].y ^ values[k].z ^ values[k].w;
  }
  for (; i < count; i += stride) mix ^= data[i].x;
  if (mix == 0x5eed5eed) *sink = mix;  // never known to the compiler
}

struct HeadArgs {
  bf16* qkv;
  int num_heads, num_kv_heads, head_dim;
  const float *query_norm, *key_norm, *query_table, *key_table;
  const float* square_sums;  // [num_rows, 2] of a norm over all heads, of so many elements
  float query_count, key_count;
  float eps;
  int rotary_dim;
  void *keys, *values;
  float *key_scales, *value_scales;  // of e4m3 alone
  int page_size;
  const std::int32_t *positions, *cache_rows;
};

constexpr int kMaxHeadDim = 256;
constexpr int kPerLane = kMaxHeadDim / 32;

// The scale of a head that a warp holds, as ops::KvLayer defines it. Magnitudes are compared as integers, of which
// those of infinities and NaN are the largest.
__device__ float scale_of(const float (&value)[kPerLane], int dim) {
  constexpr unsigned kInfinity = 0x7f800000u;
  unsigned largest = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j)
    if (static_cast<int>(threadIdx.x) % 32 + 32 * j < dim) largest = max(largest, __float_as_uint(fabsf(value[j])));
  largest = __reduce_max_sync(0xffffffffu, largest);
  if (largest >= kInfinity) return __uint_as_float(kInfinity + 1);  // a NaN
  const float scale = __uint_as_float(largest) / kv_byte_max(DType::f8e4m3);
  return scale > 0.0f ? scale : 1.0f;
}

// A warp takes one head of one row: norm, rotation, and keys and values to the cache. norms_all: a norm over all heads.
template <typename T, bool norms_all>
__global__ void __launch_bounds__(kThreads) store_heads_kernel(HeadArgs args) {
  __shared__ float staged[kWarps][kMaxHeadDim];
  let_next_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.y * kWarps + warp;
  const int num_all = args.num_heads + 2 * args.num_kv_heads, dim = args.head_dim;
  const std::int64_t row = blockIdx.x;
  if (head >= num_all) {
    wait_for_previous();
    return;
  }
  bf16* x = args.qkv + (row * num_all + head) * dim;
  const bool is_query = head < args.num_heads, is_value = head >= args.num_heads + args.num_kv_heads;

  // What earlier kernels of the step don't make is read before they end.
  const std::int32_t cache_row = args.cache_rows[row];
  const float* norm = is_value ? nullptr : is_query ? args.query_norm : args.key_norm;
  if (norms_all && norm != nullptr) norm += (is_query ? head : head - args.num_heads) * dim;
  const int half = args.rotary_dim / 2;
  const float* table = is_query ? args.query_table : args.key_table;
  const float* cos_sin = table + std::int64_t{args.positions[row]} * args.rotary_dim;
  float weight[kPerLane], cosine[kPerLane], sine[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = lane + 32 * j;
    const bool rotates = !is_value && i < 2 * half;
    weight[j] = norm != nullptr && i < dim ? norm[i] : 1.0f;
    cosine[j] = rotates ? cos_sin[i % half] : 1.0f;
    sine[j] = rotates ? cos_sin[half + i % half] : 0.0f;
  }
  wait_for_previous();

  float value[kPerLane];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int i = lane + 32 * j;
    value[j] = i < dim ? to_float(x[i]) : 0.0f;
    squares += value[j] * value[j];
  }
  if (norm != nullptr) {
    float mean;
    if constexpr (norms_all) {
      mean = args.square_sums[2 * row + (is_query ? 0 : 1)] / (is_query ? args.query_count : args.key_count);
    } else {
      mean = warp_sum(squares) / static_cast<float>(dim);
    }
    const float inverse = rsqrtf(mean + args.eps);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) value[j] *= inverse * weight[j];
  }
  if (!is_value) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) staged[warp][lane + 32 * j] = value[j];
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int i = lane + 32 * j;
      if (i < half) {
        value[j] = value[j] * cosine[j] - staged[warp][i + half] * sine[j];
      } else if (i < 2 * half) {
        value[j] = value[j] * cosine[j] + staged[warp][i - half] * sine[j];
      }
    }
  }
  if (is_query) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j)
      if (lane + 32 * j < dim) x[lane + 32 * j] = __float2bfloat16(value[j]);
    return;
  }
  if (cache_row < 0) return;
  const int kv_head = (head - args.num_heads) % args.num_kv_heads;
  const std::int64_t page = cache_row / args.page_size, place = cache_row % args.page_size;
  const std::int64_t place_in_cache = (page * args.num_kv_heads + kv_head) * args.page_size + place;
  T* out = static_cast<T*>(is_value ? args.values : args.keys) + place_in_cache * dim;
  if constexpr (std::is_same_v<T, e4m3>) {
    const float scale = scale_of(value, dim);
    if (lane == 0) (is_value ? args.value_scales : args.key_scales)[place_in_cache] = scale;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (lane + 32 * j < dim)
        out[lane + 32 * j] = {__nv_cvt_float_to_fp8(value[j] / scale, __NV_SATFINITE, __NV_E4M3)};
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j)
      if (lane + 32 * j < dim) out[lane + 32 * j] = from_float<T>(value[j]);
  }
}

}  // namespace

void read_all(const std::byte* data, std::size_t bytes, std::uint32_t* sink, int num_processors, cudaStream_t stream) {
  read_all_kernel<<<static_cast<unsigned>(4 * num_processors), 512, 0, stream>>>(reinterpret_cast<const uint4*>(data),
                                                                                 bytes / sizeof(uint4), sink);
  MINISGL_CUDA_CHECK(cudaGetLastError());
}

void gather_rows(const StepData& step, const void* x, std::int64_t cols, void* y, cudaStream_t stream) {
  launch_kernel(copy_rows_kernel, dim3(static_cast<unsigned>(step.num_logits + step.num_hidden)), kThreads, 0, stream,
                static_cast<const bf16*>(x), step.logit_rows, cols, static_cast<bf16*>(y));
}

void add_rms_norm(void* x, const void* delta, const float* weight, float eps, std::int64_t rows, std::int64_t cols,
                  void* y, cudaStream_t stream) {
  const auto kernel = cols % 8 == 0 ? add_rms_norm_kernel<8> : add_rms_norm_kernel<1>;
  launch_kernel(kernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, static_cast<bf16*>(x),
                static_cast<const bf16*>(delta), weight, eps, cols, static_cast<bf16*>(y));
}

void add_norm_rows(const NormRows& rows, const Norm& added, const Norm& norm, cudaStream_t stream) {
  launch_kernel(any_norm_kernel, dim3(static_cast<unsigned>(rows.rows)), kThreads, 0, stream,
                AnyNormArgs{static_cast<bf16*>(rows.x), static_cast<const bf16*>(rows.delta), added, norm, rows.cols,
                            static_cast<bf16*>(rows.y)});
}

void scale_and_cap(float* x, std::int64_t count, float scale, float cap, cudaStream_t stream) {
  launch_kernel(scale_and_cap_kernel, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0,
                stream, x, count, scale, cap);
}

void head_square_sums(const void* qkv, std::int64_t num_rows, const HeadShape& shape, float* sums,
                      cudaStream_t stream) {
  launch_kernel(head_square_sums_kernel, dim3(static_cast<unsigned>(num_rows), 2), kThreads, 0, stream,
                static_cast<const bf16*>(qkv), shape.row_size(), std::int64_t{shape.num_heads} * shape.head_dim,
                std::int64_t{shape.num_kv_heads} * shape.head_dim, sums);
}

void gate_rows(Activation activation, const void* z, std::int64_t rows, std::int64_t cols, void* y,
               cudaStream_t stream) {
  const int width = cols % 8 == 0 ? 8 : 1;
  const bool silu = activation == Activation::silu;
  const auto wide = silu ? gate_rows_kernel<8, Activation::silu> : gate_rows_kernel<8, Activation::gelu_tanh>;
  const auto narrow = silu ? gate_rows_kernel<1, Activation::silu> : gate_rows_kernel<1, Activation::gelu_tanh>;
  const auto kernel = width == 8 ? wide : narrow;
  const std::int64_t accesses = rows * cols / width;
  launch_kernel(kernel, dim3(static_cast<unsigned>((accesses + kThreads - 1) / kThreads)), kThreads, 0, stream,
                static_cast<const bf16*>(z), rows, cols, static_cast<bf16*>(y));
}

void store_heads(const StepData& step, void* qkv, const HeadShape& shape, const HeadTransform& transform,
                 const ops::KvLayer& cache, const SquareSums& squares, cudaStream_t stream) {
  MINISGL_CHECK(shape.head_dim <= kMaxHeadDim, "head_dim ", shape.head_dim);
  MINISGL_CHECK(transform.rotary_dim % 2 == 0 && transform.rotary_dim <= shape.head_dim, "rotary_dim ",
                transform.rotary_dim);
  const HeadArgs args{
      .qkv = static_cast<bf16*>(qkv),
      .num_heads = shape.num_heads,
      .num_kv_heads = shape.num_kv_heads,
      .head_dim = shape.head_dim,
      .query_norm = transform.query_norm,
      .key_norm = transform.key_norm,
      .query_table = transform.query_rope_table != nullptr ? transform.query_rope_table : transform.rope_table,
      .key_table = transform.rope_table,
      .square_sums = squares.sums,
      .query_count = static_cast<float>(squares.num_ranks * shape.num_heads * shape.head_dim),
      .key_count = static_cast<float>(squares.num_ranks * shape.num_kv_heads * shape.head_dim),
      .eps = transform.eps,
      .rotary_dim = transform.rotary_dim,
      .keys = cache.keys,
      .values = cache.values,
      .key_scales = cache.key_scales,
      .value_scales = cache.value_scales,
      .page_size = cache.page_size,
      .positions = step.positions,
      .cache_rows = step.cache_rows};
  const int num_all = shape.num_heads + 2 * shape.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(step.num_rows), static_cast<unsigned>((num_all + kWarps - 1) / kWarps));
  const auto kernel_for = [&]<bool norms_all>(std::bool_constant<norms_all>) {
    return cache.dtype == DType::bf16  ? store_heads_kernel<bf16, norms_all>
           : cache.dtype == DType::f16 ? store_heads_kernel<half, norms_all>
                                       : store_heads_kernel<e4m3, norms_all>;
  };
  const auto kernel = transform.norms_all_heads ? kernel_for(std::true_type{}) : kernel_for(std::false_type{});
  launch_kernel(kernel, grid, kThreads, 0, stream, args);
}

}  // namespace minisgl::cuda
