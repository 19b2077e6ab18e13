// The layers of a dense decoder as the kernel that runs them in one launch takes them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/step_data.h"

namespace minisgl::cuda::stack {

// Quotients by one number without a division, of numbers that are less than 2^32 over it.
struct Divisor {
  std::uint32_t magic;  // 0: of 1
  static Divisor of(int number) {
    return {number == 1 ? 0 : static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + number - 1) / number)};
  }
  __device__ __forceinline__ int quotient(int n) const {
    return magic == 0 ? n : static_cast<int>(__umulhi(static_cast<std::uint32_t>(n), magic));
  }
};

// One layer, in the device's memory. Norms are RMS norms [hidden], those of heads [head_dim] or null.
struct StackLayer {
  const __nv_bfloat16* weights[4];  // of queries, keys and values; attention's output; gate and up; down
  const float* qkv_bias;            // or null
  const float *input_norm, *mlp_norm, *query_norm, *key_norm;
  __nv_bfloat16 *keys, *values;
};

struct StackArgs {
  const StackLayer* layers;  // [num_layers]
  int num_layers, rows, hidden, num_heads, num_kv_heads, head_dim, intermediate;
  float norm_eps, head_eps, scale_log2;
  const float* rope_table;  // [positions, head_dim]
  int page_size;
  Divisor by_page;
  const std::int32_t *positions, *cache_rows, *pages;
  const SequenceEntry* sequences;  // a row's at the row's index; one without rows is no row's
  __nv_bfloat16* residual;         // [rows, hidden]: in and out
  // What blocks hand each other, of this number of rows alone: of queries, keys and values; attention's output; the
  // residual; activated; the residual. One row: [width] values with tags. More: [2][rows, width / 2] pairs of values.
  std::uint32_t* words[5];
  int pairs[5];  // of one of the two
  std::uint64_t* part_words;
  std::uint32_t* epoch;
  int part_positions;  // a part of attention has at least so many, where the sequence has
};

}  // namespace minisgl::cuda::stack
