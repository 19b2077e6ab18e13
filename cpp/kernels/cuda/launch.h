// Entry points of this room's CUDA kernels. All queue their work on `stream`; pointers are the device's, activations
// bf16.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/step_data.h"
#include "kernels/ops.h"

namespace minisgl::cuda {

// Reads everything and keeps nothing: the read bandwidth. `sink` is one word.
void read_all(const std::byte* data, std::size_t bytes, std::uint32_t* sink, int num_processors, cudaStream_t stream);

// table [num_tokens, cols], of the tokens from first_token on, times `scale`; other tokens' rows of y become zeros.
void embed(const StepData& step, const void* table, std::int64_t first_token, std::int64_t num_tokens,
           std::int64_t cols, float scale, void* y, cudaStream_t stream);
// delta null: y = norm(x). Else x += delta, y = norm(x).
void add_rms_norm(void* x, const void* delta, const float* weight, float eps, std::int64_t rows, std::int64_t cols,
                  void* y, cudaStream_t stream);
// The same of any norms: x += the norm `added` of delta, y = the norm of x. Where x has no norm, y stays as it is.
struct NormRows {
  void* x;            // [rows, cols]
  const void* delta;  // [rows, cols] or null
  std::int64_t rows, cols;
  void* y;  // [rows, cols]
};
void add_norm_rows(const NormRows& rows, const Norm& added, const Norm& norm, cudaStream_t stream);
// y[r, i] = activation(z[r, i]) * z[r, cols + i].
void gate_rows(Activation activation, const void* z, std::int64_t rows, std::int64_t cols, void* y,
               cudaStream_t stream);
// x [count] f32, as Ops::scale_logits.
void scale_and_cap(float* x, std::int64_t count, float scale, float cap, cudaStream_t stream);
// sums [num_rows, 2] of the squares of each row's queries, and of its keys.
void head_square_sums(const void* qkv, std::int64_t num_rows, const HeadShape& shape, float* sums, cudaStream_t stream);
void gather_rows(const StepData& step, const void* x, std::int64_t cols, void* y, cudaStream_t stream);
// A norm over all heads of all ranks takes its squares from `sums` [num_rows, 2], the sums over ranks of
// head_square_sums().
struct SquareSums {
  const float* sums = nullptr;
  int num_ranks = 1;
};
void store_heads(const StepData& step, void* qkv, const HeadShape& shape, const HeadTransform& transform,
                 const ops::KvLayer& cache, const SquareSums& squares, cudaStream_t stream);

// What a cache of DType::f8e4m3 holds (ops::KvLayer says what it means).
struct e4m3 {
  std::uint8_t bits;
};

// Tiles of prefill attention that blocks have taken, and blocks that have taken their last. Zeros between kernels.
struct Tickets {
  std::uint32_t taken, finished;
};

struct AttentionArgs {
  StepData step;
  const void* qkv;
  void* out;  // [num_rows, num_heads * head_dim]
  HeadShape shape;
  ops::KvLayer cache;
  float scale;
  float cap;           // of the product of a query and a key, before it is scaled; 0: none
  const float* sinks;  // [num_heads] or null, as ScoreRule's
  std::int32_t window;
  // Prefill's tiles of positions begin at multiples of their length, whatever a sequence's rows see: so a row's sums
  // are added up in one order, whichever rows are beside it.
  bool fixed_tiles = false;
  // Decode: the positions of a sequence are cut into at most num_splits parts (which decode_attention() chooses).
  // Partial results lie in `partials`, [num_decodes, blocks of heads, num_splits] of partial_floats(), at most
  // most_parts in all where there are splits; `arrived`, one for each of num_decodes and blocks of heads, starts and
  // ends as zeros. Dealt evenly (decode_even.cuh) each block has two of the parts and one of the counts.
  std::int64_t most_parts;
  float* partials;
  std::uint32_t* arrived;
  Tickets* tickets;
  int num_splits = 1;
  bool tapers = false;  // of two parts the first is twice as long
};
constexpr int kDecodeQueries = 16;  // query heads of one KV head that a block of the decode kernel takes
inline int decode_head_blocks(const HeadShape& shape) {
  const int group = shape.num_heads / shape.num_kv_heads;
  return shape.num_kv_heads * ((group + kDecodeQueries - 1) / kDecodeQueries);
}
constexpr std::int64_t partial_floats(int head_dim) {
  return std::int64_t{kDecodeQueries} * (head_dim + 2);
}

// Head sizes are served by the next of 64, 80, 96, 128, 256, of e4m3 by the next of 64, 128, 256 (and they are
// multiples of 16); one instantiation of each lies in a file of its own.
template <typename T, int padded_dim>
void decode_attention(const AttentionArgs& args, cudaStream_t stream);
template <typename T, int padded_dim>
void prefill_attention(const AttentionArgs& args, cudaStream_t stream);
// The same on compute capability 9.0; false where this build or this GPU can't.
template <typename T, int padded_dim>
bool hopper_prefill_attention(const AttentionArgs& args, cudaStream_t stream);
// Both, as far as the step has such rows.
void paged_attention(const AttentionArgs& args, cudaStream_t stream);

// Marks tokens as seen in a prompt: seen [vocab], bit 31 the prompt, below it the count in the output.
void mark_prompt(std::uint32_t* seen, const std::int32_t* tokens, int count, cudaStream_t stream);
// The same for tokens of an output; one may stand there several times.
void count_output(std::uint32_t* seen, const std::int32_t* tokens, int count, cudaStream_t stream);
// y [rows, cols]: the first columns of parts [any number, rows, part_cols] side by side.
void join_columns(const float* parts, std::int64_t rows, std::int64_t part_cols, std::int64_t cols, float* y,
                  cudaStream_t stream);
// Answers the step's queries. logits and adjusted [num_logits, vocab]; seen [slots, vocab]; outputs [num_logits].
void sample(const StepData& step, const float* logits, float* adjusted, std::int64_t vocab, std::uint32_t* seen,
            OutputEntry* outputs, cudaStream_t stream);

}  // namespace minisgl::cuda
