// The CPU's operations, cut over threads: what the CPU's Ops (ops.h) are made of. f32 activations; caches in f32, f16,
// bf16 or int8. Each op treats a row (a token, or a token's head) on its own: same bits whatever is computed beside it.
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"
#include "gemm/layout.h"
#include "kernels/ops.h"

namespace minisgl::cpu_ops {

using ops::KvLayer;
using ops::SequenceRows;

// The three operations below write what a linear reads next: with `blocks` [num_rows, dim / 32] each row of y is also
// quantised for it while it is in the cache; null leaves that out.

// Where the results of the first two go. Where there is no norm, y is what it would be taken of.
struct NormRows {
  std::int64_t num_rows;
  std::int64_t dim;
  float* y;  // [num_rows, dim]
  ActivationBlock* blocks = nullptr;
};

// y[r] = the norm of x[r], x [num_rows, dim]; x == y is allowed.
void norm_rows(ThreadPool& pool, const float* x, const Norm& norm, const NormRows& out);

// residual += delta, or the norm `added` of delta, which then becomes anything; y = the norm of residual. All
// [num_rows, dim].
void add_norm_rows(ThreadPool& pool, float* residual, float* delta, const Norm& added, const Norm& norm,
                   const NormRows& out);

// y[r, i] = activation(gate_up[r, i]) * gate_up[r, dim + i]; gate_up [num_rows, 2 * dim], y [num_rows, dim].
void gate_rows(ThreadPool& pool, Activation activation, const float* gate_up, const NormRows& out);

// Ops::scale_logits, of x [num_rows, dim].
void scale_and_cap(ThreadPool& pool, float* x, std::int64_t num_rows, std::int64_t dim, float scale, float cap);

// Merged projections of each token, [num_rows, (num_heads + 2 * num_kv_heads) * head_dim]: queries, keys, values.
struct QkvView {
  float* data;
  std::int64_t num_rows;
  int num_heads;
  int num_kv_heads;
  int head_dim;
  std::int64_t row_stride() const { return std::int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
};

// RMS norm of each query head and key head over head_dim (Qwen3). Weights [head_dim].
void qk_norm(ThreadPool& pool, QkvView qkv, const float* q_weight, const float* k_weight, float eps);

// A norm over all query heads of a row and one over all key heads, of which this rank has a part, with its part of the
// weights: sums [num_rows, 2] of the squares of queries and keys, and the norm of so many elements by such sums.
void head_square_sums(ThreadPool& pool, QkvView qkv, float* sums);
void norm_all_heads(ThreadPool& pool, QkvView qkv, const HeadTransform& transform, const float* sums,
                    std::int64_t num_ranks);

// Rotates halves (x[i], x[i + rotary_dim/2]) of every query and key head in place; positions [num_rows].
// Tables [max_positions, rotary_dim]: the first half of a row is cos, the second sin, attention factor included.
struct RopeTables {
  const float* queries;
  const float* keys;
};
void rope(ThreadPool& pool, QkvView qkv, const std::int32_t* positions, const RopeTables& tables, int rotary_dim);

// What the CPU's kernels write and read.
constexpr bool is_cache_dtype(DType dtype) {
  return !is_quantized(dtype) || dtype == DType::i8;
}

// Throws CheckError unless the kernels know the cache's dtype, and its scales are there where the dtype has such (and
// its head_dim is a multiple of 8 then).
void check_cache(const KvLayer& cache);

// Writes the keys and values of every row into the cache.
void store_kv(ThreadPool& pool, QkvView qkv, std::span<const SequenceRows> sequences, KvLayer cache);

// Causal attention of every row over its sequence's cache (which already holds the row's own key and value).
// A row at position p sees positions (p - window, p], or [0, p] for window 0. out [num_rows, num_heads * head_dim].
// head_dim is a multiple of 8 up to 256 (loading a model with another one is refused), num_heads a multiple of
// num_kv_heads, page_size any positive number. What the cache holds at positions that a row does not see, garbage and
// NaN included, has no influence. Throws CheckError for shapes that are not allowed.
void paged_attention(ThreadPool& pool, QkvView qkv, std::span<const SequenceRows> sequences, KvLayer cache,
                     ScoreRule scores, std::int32_t window, float* out);

}  // namespace minisgl::cpu_ops
