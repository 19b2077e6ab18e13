// What a step computes, as every device's operations understand it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace minisgl {

class Adapter;  // kernels/adapter.h

namespace ops {

// One layer of the paged cache. keys and values: [num_pages, num_kv_heads, page_size, head_dim] of dtype.
//
// A scaled dtype (has_kv_scales) has a scale per token and KV head for its key, and one for its value: that head's
// largest magnitude over kv_byte_max(dtype), or 1 where that is 0. It stores x / scale, rounded to the nearest, ties to
// even, and means what is stored times the scale. What is stored therefore depends on the token's own head alone. A
// head with a NaN or an infinity has a scale that isn't finite: whoever sees it reads NaN, and nobody else notices.
struct KvLayer {
  std::byte* keys;
  std::byte* values;
  DType dtype;  // one of kv_dtypes
  int num_kv_heads;
  int page_size;
  int head_dim;
  float* key_scales = nullptr;    // [num_pages, num_kv_heads, page_size], null for a dtype without scales
  float* value_scales = nullptr;  // the same
};

// Consecutive rows of a step that belong to one sequence.
struct SequenceRows {
  std::int32_t first_row;
  std::int32_t num_rows;
  std::int32_t start_position;       // position of the first row; rows follow one another
  const std::int32_t* page_table;    // page of position p is page_table[p / page_size]
  const Adapter* adapter = nullptr;  // of the device's making, there until the step was launched; null: none
};

}  // namespace ops

// Rows of many sequences, each one token. The spans are the host's memory. A token below 0 is known to the device
// alone: -1 - i is what the step before this one drew from its logits i (StepRunner::runs_ahead).
struct StepBatch {
  std::span<const std::int32_t> tokens;          // [num_rows]
  std::span<const std::int32_t> positions;       // [num_rows]
  std::span<const ops::SequenceRows> sequences;  // cover all rows, in order
  std::span<const std::int32_t> logit_rows;      // [num_logits] ascending rows whose logits are wanted
  int page_size;                                 // positions per page of the page tables
  // [num_hidden] ascending rows whose hidden states are wanted
  std::span<const std::int32_t> hidden_rows = {};
};

// The largest steps that will come.
struct StepLimits {
  std::int64_t rows, sequences;
  std::int64_t penalized;  // sequences with penalties, whose tokens are counted
  std::int64_t logits;     // rows of logits
  std::int64_t hidden;     // rows of hidden states
  std::int64_t positions;  // the most of one sequence
  std::int64_t pages;      // the most of all sequences together
  std::int64_t vocab_size;
};

}  // namespace minisgl
