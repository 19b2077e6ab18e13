// Attention on the tensor cores, after FlashAttention 2 (Dao, 2023): scores and softmax of a tile of positions stay in
// registers. Query heads that share a KV head are packed with their rows into the 16-row tiles of the instructions, so
// a key or value is read once for all of them. Pieces that the decode and the prefill kernel share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/runtime.h"
#include "kernels/cuda/launch.h"

namespace minisgl::cuda {

constexpr float kLog2E = 1.4426950408889634f;

// One instruction; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// One instruction.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// What the tensor cores compute with where the cache holds T.
template <typename T>
using ProductType = std::conditional_t<std::is_same_v<T, e4m3>, half, T>;

// What a block needs to find one KV head's positions.
template <typename T>
struct Pages {
  const T* keys;  // page 0, head 0
  const T* values;
  const float* key_scales;  // one per row; of e4m3 alone
  const float* value_scales;
  const std::int32_t* table;
  int num_kv_heads, kv_head;
  int page_size;
  int head_dim;

  // Index of a position's row among all rows [head_dim] of the cache.
  __device__ std::int32_t row_of(std::int32_t position) const {
    const auto page = static_cast<unsigned>(position) / static_cast<unsigned>(page_size);
    return (table[page] * num_kv_heads + kv_head) * page_size + (position - static_cast<int>(page) * page_size);
  }
};

template <typename T>
__device__ __forceinline__ Pages<T> pages_of(const AttentionArgs& args, const SequenceEntry& sequence, int kv_head) {
  return {.keys = reinterpret_cast<const T*>(args.cache.keys),
          .values = reinterpret_cast<const T*>(args.cache.values),
          .key_scales = args.cache.key_scales,
          .value_scales = args.cache.value_scales,
          .table = args.step.pages + sequence.first_page,
          .num_kv_heads = args.cache.num_kv_heads,
          .kv_head = kv_head,
          .page_size = args.cache.page_size,
          .head_dim = args.cache.head_dim};
}

// Rows of a tile in shared memory: 16 bytes longer than the head, so that neighbouring rows lie in other banks.
template <int dim>
constexpr int kStride = dim + 8;

// A warp loads `size` positions of keys and values into shared memory, in the background. A lane knows a position's
// row: its own_row, -1 for zeros; what lies past the head's size becomes zeros, too.
template <typename T, int dim, int size>
__device__ __forceinline__ void load_rows(const Pages<T>& pages, std::int32_t own_row, T* keys, T* values, int lane) {
  constexpr int chunks = dim / 8;
  static_assert(size <= 32 && size * chunks % 32 == 0);
#pragma unroll 4
  for (int i = 0; i < size * chunks / 32; ++i) {
    const int row = (32 * i + lane) / chunks, chunk = (32 * i + lane) % chunks;
    const std::int32_t cache_row = __shfl_sync(0xffffffffu, own_row, row);
    const bool valid = cache_row >= 0 && chunk * 8 < pages.head_dim;
    const std::int64_t from = valid ? std::int64_t{cache_row} * pages.head_dim + chunk * 8 : 0;
    copy_16_async(keys + row * kStride<dim> + chunk * 8, pages.keys + from, valid);
    copy_16_async(values + row * kStride<dim> + chunk * 8, pages.values + from, valid);
  }
}

// A softmax under way for 16 queries, spread over a warp as the instructions have it: a lane holds queries lane / 4 and
// lane / 4 + 8, and of each 8 columns 2 * (lane % 4) and the next.
template <int dim>
struct Softmax {
  float max[2];  // the greatest scores, in units of log 2; -inf before the first
  float sum[2];  // this lane's share
  float acc[dim / 8][4];

  __device__ void clear() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int j = 0; j < dim / 8; ++j) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
  }
  __device__ __forceinline__ void scale(const float (&by)[2]) {
#pragma unroll
    for (int j = 0; j < dim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[j][i] *= by[i / 2];
    }
  }
};

// Where there is a cap, scores become cap * tanh(score / cap), exact to about 2^-22 of the cap.
template <typename Scores>
__device__ __forceinline__ void cap_scores(Scores& scores, float cap) {
  if (cap == 0.0f) return;
  if constexpr (std::is_array_v<Scores>) {
#pragma unroll
    for (auto& some : scores) cap_scores(some, cap);
  } else {
    const float power = exp2_fast(scores * (2.0f * kLog2E * reciprocal_fast(cap)));
    scores = cap - 2.0f * cap * reciprocal_fast(1.0f + power);
  }
}

// What a head's sink, if it has one, adds to a sum of weights over 2^max.
__device__ __forceinline__ float sink_weight(const AttentionArgs& args, int head, float max) {
  return args.sinks == nullptr ? 0.0f : exp2_fast(args.sinks[head] * kLog2E - max);
}

// Which positions the two queries of a lane see: [low, high).
struct Visible {
  std::int32_t low[2], high[2];
};

__device__ __forceinline__ Visible visible_to(std::int32_t position, std::int32_t next_position, std::int32_t window) {
  return {.low = {window > 0 ? position - window + 1 : 0, window > 0 ? next_position - window + 1 : 0},
          .high = {position + 1, next_position + 1}};
}

// A lane's scores of a tile of `size` positions from `first` on become weights: 2^(score * scale_log2) over the
// greatest so far. The sums so far, and all that was weighed before, must shrink by `shrink`; `sum` does here.
template <int size>
__device__ __forceinline__ void weigh(float (&score)[size / 8][4], std::int32_t first, const Visible& visible,
                                      bool masked, float scale_log2, float (&max)[2], float (&sum)[2],
                                      float (&shrink)[2]) {
  if (masked) {
    const std::int32_t own = first + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int j = 0; j < size / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int32_t position = own + 8 * j + i % 2;
        if (position < visible.low[i / 2] || position >= visible.high[i / 2]) score[j][i] = -INFINITY;
      }
    }
  }
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < size / 8; ++j) top = fmaxf(top, fmaxf(score[j][2 * half], score[j][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float new_max = fmaxf(max[half], top * scale_log2);
    base[half] = new_max == -INFINITY ? 0.0f : new_max;  // nothing seen yet: every weight becomes 0
    shrink[half] = exp2_fast(max[half] - base[half]);
    max[half] = new_max;
    sum[half] *= shrink[half];
  }
#pragma unroll
  for (int j = 0; j < size / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[j][i] = exp2_fast(score[j][i] * scale_log2 - base[i / 2]);
      sum[i / 2] += score[j][i];
    }
  }
}

// Folds a tile of `size` positions from `first` on into the softmaxes of `blocks` times 16 queries. masked: whether
// some query may not see some position of it. cap: of the products.
template <typename T, int dim, int size, int blocks>
__device__ __forceinline__ void fold_tile(const T* queries, const T* keys, const T* values, std::int32_t first,
                                          const Visible (&visible)[blocks], bool masked, float scale_log2, float cap,
                                          Softmax<dim> (&softmax)[blocks]) {
  const int lane = threadIdx.x % 32;
  float score[blocks][size / 8][4] = {};
#pragma unroll
  for (int k = 0; k < dim / 16; ++k) {
    std::uint32_t a[blocks][4];
#pragma unroll
    for (int b = 0; b < blocks; ++b)
      ldmatrix_x4(a[b], queries + (16 * b + lane % 16) * kStride<dim> + 16 * k + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < size / 16; ++n) {
      std::uint32_t key[4];
      ldmatrix_x4(key, keys + (16 * n + lane % 8 + lane / 16 * 8) * kStride<dim> + 16 * k + lane / 8 % 2 * 8);
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        mma_16816<T>(score[b][2 * n], a[b], key[0], key[1]);
        mma_16816<T>(score[b][2 * n + 1], a[b], key[2], key[3]);
      }
    }
  }

#pragma unroll
  for (int b = 0; b < blocks; ++b) {
    float shrink[2];
    cap_scores(score[b], cap);
    weigh<size>(score[b], first, visible[b], masked, scale_log2, softmax[b].max, softmax[b].sum, shrink);
    softmax[b].scale(shrink);
  }

#pragma unroll
  for (int k = 0; k < size / 16; ++k) {
    std::uint32_t a[blocks][4];
#pragma unroll
    for (int b = 0; b < blocks; ++b) {
      a[b][0] = pack2<T>(score[b][2 * k][0], score[b][2 * k][1]);
      a[b][1] = pack2<T>(score[b][2 * k][2], score[b][2 * k][3]);
      a[b][2] = pack2<T>(score[b][2 * k + 1][0], score[b][2 * k + 1][1]);
      a[b][3] = pack2<T>(score[b][2 * k + 1][2], score[b][2 * k + 1][3]);
    }
#pragma unroll
    for (int d = 0; d < dim / 16; ++d) {
      std::uint32_t value[4];
      ldmatrix_x4_transposed(value, values + (16 * k + lane % 16) * kStride<dim> + 16 * d + lane / 16 * 8);
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        mma_16816<T>(softmax[b].acc[2 * d], a[b], value[0], value[1]);
        mma_16816<T>(softmax[b].acc[2 * d + 1], a[b], value[2], value[3]);
      }
    }
  }
}

// The sums over the four lanes that share a query.
template <int dim>
__device__ __forceinline__ void finish_sums(Softmax<dim>& softmax) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    softmax.sum[half] += __shfl_xor_sync(0xffffffffu, softmax.sum[half], 1);
    softmax.sum[half] += __shfl_xor_sync(0xffffffffu, softmax.sum[half], 2);
  }
}

}  // namespace minisgl::cuda
