// The CPU kernels of this room, one table per instruction set; isa/ is compiled once for each. All work on one row, one
// head or one block of queries and know nothing of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"

namespace minisgl {

// Positions are attended to in tiles, tiles are folded into ranges, both cut at absolute positions. A query's
// arithmetic is therefore fixed by its position and its window alone: tile by tile inside a range, then range by
// range, in ascending order, whoever computes the ranges and whichever queries share the tiles.
constexpr std::int32_t kAttentionTile = 32;
constexpr std::int32_t kAttentionRange = 256;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxBlockQueries = 128;

// Query heads of consecutive rows that share one KV head, and that head's pages.
struct AttentionBlock {
  const float* query;         // the first row and head; the heads of a row lie side by side
  std::int64_t query_stride;  // between rows
  int num_rows;               // num_rows * num_heads <= kMaxBlockQueries
  int num_heads;
  std::int32_t first_position;  // the first row's
  const std::byte* keys;        // this KV head in page 0: [page_size, head_dim] of dtype
  const std::byte* values;
  std::int64_t page_stride;  // bytes between pages
  const float* key_scales;   // [page_size] of this KV head in page 0, null for a dtype without scales
  const float* value_scales;
  std::int64_t scale_stride;  // floats between pages
  const std::int32_t* page_table;
  DType dtype;
  int page_size;
  int head_dim;
  float scale;
  float cap;  // of scores, 0: none
  std::int32_t window;

  int num_queries() const { return num_rows * num_heads; }
};

// A softmax under way for the queries of a block: row by row, head by head.
struct AttentionState {
  float* max;  // [num_queries] largest score; -inf before the first
  float* sum;  // [num_queries] of exp(score - max)
  float* acc;  // [num_queries, head_dim] of exp(score - max) * value
};

constexpr int kLowRankPanel = 32;

// hidden[i, j] = the sum of x[rows[i], k] * weights[j, k]: the first product of an adapter.
struct LowRankDown {
  const float* x;
  std::int64_t x_stride;
  const std::int32_t* rows;
  std::int64_t num_rows;
  const std::byte* weights;  // [rank, inputs] of dtype, f32 or bf16
  DType dtype;
  std::int64_t inputs, rank;
  float* hidden;
  std::int64_t hidden_stride;
};

// y[rows[i], n] += the sum of hidden[i, j] * weights[n / panel, j, n % panel]: the second.
struct LowRankUp {
  const float* hidden;
  std::int64_t hidden_stride;
  const std::int32_t* rows;
  std::int64_t num_rows;
  const std::byte* weights;  // [ceil(outputs / kLowRankPanel), rank, kLowRankPanel] of dtype
  DType dtype;
  std::int64_t rank, outputs;
  float* y;
  std::int64_t y_stride;
};

struct CpuKernels {
  // ops.h on one row of `dim`.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t dim, float* y);
  void (*add_rms_norm)(float* residual, const float* delta, const float* weight, float eps, std::int64_t dim, float* y);
  void (*layer_norm)(const float* x, const float* weight, float eps, std::int64_t dim, float* y);
  float (*square_sum)(const float* x, std::int64_t dim);
  void (*silu_mul)(const float* gate, const float* up, std::int64_t dim, float* y);
  void (*gelu_mul)(const float* gate, const float* up, std::int64_t dim, float* y);
  void (*clamped_silu_mul)(const float* gate, const float* up, std::int64_t dim, float* y);
  void (*scale_and_cap)(float* x, std::int64_t dim, float scale, float cap);  // Ops::scale_logits
  void (*rope)(float* head, const float* cos_sin, int rotary_dim);
  void (*convert)(const float* x, std::int64_t size, DType dtype, std::byte* out);  // f32 to f32, f16 or bf16
  // A head to int8 (KvLayer, step.h), `size` a multiple of 8: the scale.
  float (*quantize_head)(const float* x, std::int64_t size, std::byte* out);

  // Sets `state` to what the positions of one range (the range-th kAttentionRange of them) give.
  void (*attention_range)(const AttentionBlock& block, std::int32_t range, const AttentionState& state);
  // Folds the next range into `total`; finish writes acc / sum to out [num_queries, head_dim].
  void (*attention_merge)(const AttentionState& total, const AttentionState& range, int num_queries, int head_dim);
  void (*attention_finish)(const AttentionState& total, int num_queries, int head_dim, float* out);

  void (*logit_block_max)(const float* x, std::int64_t size, float* block_max);  // row_math.h
  void (*logit_weights)(const float* x, std::int64_t size, float max, float scale, float* weights, float* block_sum);

  void (*low_rank_down)(const LowRankDown& args);
  void (*low_rank_up)(const LowRankUp& args);
};

// The table of one instruction set; only those in supported_cpu_isas() may be called.
const CpuKernels& cpu_kernels(CpuIsa isa);
inline const CpuKernels& cpu_kernels() {
  return cpu_kernels(cpu_isa());
}

}  // namespace minisgl
