// Cuts attention into blocks of queries, and long contexts into ranges where there are too few blocks to go round.
//
// Reads each KV head's cache once for every block: its floor is those bytes over the read bandwidth in decode, and
// 4 * positions * head_dim FLOP a query in prefill.
#include "kernels/cpu/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/error.h"

namespace minisgl {
namespace {

using cpu_ops::QkvView;
using ops::KvLayer;
using ops::SequenceRows;

// A block of queries, where its result goes and which ranges of positions it sees.
struct Work {
  AttentionBlock block;
  float* out;          // the first row and head
  const float* sinks;  // [num_heads] of the block, or null
  std::int32_t first_range, num_ranges;
  std::int64_t first_partial;  // index of its first range among all
};

void check(const QkvView& qkv, const KvLayer& cache, std::int32_t window) {
  MINISGL_CHECK(qkv.num_kv_heads == cache.num_kv_heads && qkv.head_dim == cache.head_dim, "heads of the cache differ");
  MINISGL_CHECK(qkv.num_heads % qkv.num_kv_heads == 0, qkv.num_heads, " heads for ", qkv.num_kv_heads, " KV heads");
  MINISGL_CHECK(qkv.head_dim % 8 == 0 && qkv.head_dim <= kMaxHeadDim, "head_dim ", qkv.head_dim,
                " is not a multiple of 8 up to ", kMaxHeadDim);
  MINISGL_CHECK(cache.page_size > 0 && window >= 0, "page_size ", cache.page_size, ", window ", window);
  cpu_ops::check_cache(cache);
}

// Rows of a block: as many as it takes, but not so many that threads would wait for one another at the end.
int block_rows(const QkvView& qkv, int heads_per_block, int num_threads) {
  const std::int64_t fair = qkv.num_rows * qkv.num_kv_heads / (std::int64_t{4} * num_threads);
  return static_cast<int>(std::clamp<std::int64_t>(fair, 1, kMaxBlockQueries / heads_per_block));
}

std::vector<Work> cut(const QkvView& qkv, std::span<const SequenceRows> sequences, const KvLayer& cache,
                      ScoreRule scores, std::int32_t window, int num_threads, float* out) {
  const int group = qkv.num_heads / qkv.num_kv_heads;
  const int heads_per_block = std::min(group, kMaxBlockQueries);
  const int rows_per_block = block_rows(qkv, heads_per_block, num_threads);
  const std::int64_t head_bytes = cache.page_size * row_bytes(cache.dtype, cache.head_dim);
  const auto scales_of = [&](const float* plane, int kv_head) {
    return plane == nullptr ? nullptr : plane + kv_head * cache.page_size;
  };

  std::vector<Work> all;
  std::int64_t num_partials = 0;
  for (const SequenceRows& sequence : sequences) {
    // The last rows see the most: they come first, so that no thread is left alone with them at the end.
    const int num_row_blocks = (sequence.num_rows + rows_per_block - 1) / rows_per_block;
    for (int row_block = num_row_blocks - 1; row_block >= 0; --row_block) {
      const int first_row = row_block * rows_per_block;
      for (int head = 0; head < qkv.num_heads; head += std::min(heads_per_block, group - head % group)) {
        const std::int64_t row = sequence.first_row + first_row;
        Work work;
        work.block = {
            .query = qkv.data + row * qkv.row_stride() + head * qkv.head_dim,
            .query_stride = qkv.row_stride(),
            .num_rows = std::min(rows_per_block, sequence.num_rows - first_row),
            .num_heads = std::min(heads_per_block, group - head % group),
            .first_position = sequence.start_position + first_row,
            .keys = cache.keys + head / group * head_bytes,
            .values = cache.values + head / group * head_bytes,
            .page_stride = cache.num_kv_heads * head_bytes,
            .key_scales = scales_of(cache.key_scales, head / group),
            .value_scales = scales_of(cache.value_scales, head / group),
            .scale_stride = std::int64_t{cache.num_kv_heads} * cache.page_size,
            .page_table = sequence.page_table,
            .dtype = cache.dtype,
            .page_size = cache.page_size,
            .head_dim = cache.head_dim,
            .scale = scores.scale,
            .cap = scores.cap,
            .window = window,
        };
        const AttentionBlock& block = work.block;
        const std::int32_t first_seen = window > 0 ? std::max(0, block.first_position - window + 1) : 0;
        const std::int32_t last_seen = block.first_position + block.num_rows - 1;
        work.sinks = scores.sinks == nullptr ? nullptr : scores.sinks + head;
        work.out = out + (row * qkv.num_heads + head) * qkv.head_dim;
        work.first_range = first_seen / kAttentionRange;
        work.num_ranges = last_seen / kAttentionRange - work.first_range + 1;
        work.first_partial = num_partials;
        num_partials += work.num_ranges;
        all.push_back(work);
      }
    }
  }
  return all;
}

constexpr std::int64_t state_floats(int num_queries, int head_dim) {
  return std::int64_t{num_queries} * (head_dim + 2);
}

AttentionState state_in(float* memory, int num_queries) {
  return {memory, memory + num_queries, memory + 2 * num_queries};
}

void clear(const AttentionState& state, int num_queries, int head_dim) {
  std::fill_n(state.max, num_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, num_queries, 0.0f);
  std::fill_n(state.acc, num_queries * head_dim, 0.0f);
}

// Folds a block's ranges in order, each given by range_state(index), and writes its rows of the output.
template <typename RangeState>
void fold(const CpuKernels& kernels, const Work& work, std::int64_t out_stride, const RangeState& range_state) {
  const AttentionBlock& block = work.block;
  const int num_queries = block.num_queries();
  alignas(64) float memory[kMaxBlockQueries * (kMaxHeadDim + 2)];
  const AttentionState total = state_in(memory, num_queries);
  clear(total, num_queries, block.head_dim);
  for (std::int32_t i = 0; i < work.num_ranges; ++i)
    kernels.attention_merge(total, range_state(i), num_queries, block.head_dim);
  for (int row = 0; row < block.num_rows; ++row) {
    const int first = row * block.num_heads;
    for (int head = 0; work.sinks != nullptr && head < block.num_heads; ++head) {
      total.sum[first + head] += std::exp(work.sinks[head] - total.max[first + head]);
    }
    const AttentionState of_row = {total.max + first, total.sum + first, total.acc + first * block.head_dim};
    kernels.attention_finish(of_row, block.num_heads, block.head_dim, work.out + row * out_stride);
  }
}

}  // namespace

void paged_attention(const CpuKernels& kernels, ThreadPool& pool, QkvView qkv, std::span<const SequenceRows> sequences,
                     KvLayer cache, ScoreRule scores, std::int32_t window, float* out) {
  check(qkv, cache, window);
  const std::vector<Work> all = cut(qkv, sequences, cache, scores, window, pool.num_threads(), out);
  if (all.empty()) return;
  const std::int64_t out_stride = std::int64_t{qkv.num_heads} * qkv.head_dim;
  int most_queries = 0;
  for (const Work& work : all) most_queries = std::max(most_queries, work.block.num_queries());
  const std::int64_t partial_floats = state_floats(most_queries, cache.head_dim);
  const std::int64_t num_partials = all.back().first_partial + all.back().num_ranges;

  constexpr std::int64_t kMostPartialFloats = std::int64_t{1} << 22;  // 16 MiB
  const bool split = pool.num_threads() > 1 && std::ssize(all) < 4 * pool.num_threads() &&
                     num_partials > std::ssize(all) && num_partials * partial_floats <= kMostPartialFloats;
  if (!split) {
    pool.parallel_for(std::ssize(all), [&](std::int64_t task, int) {
      const Work& work = all[task];
      alignas(64) float memory[kMaxBlockQueries * (kMaxHeadDim + 2)];
      const AttentionState state = state_in(memory, work.block.num_queries());
      fold(kernels, work, out_stride, [&](std::int32_t i) {
        kernels.attention_range(work.block, work.first_range + i, state);
        return state;
      });
    });
    return;
  }

  std::vector<float> partials(num_partials * partial_floats);  // the states of all ranges of all blocks
  const auto partial = [&](const Work& work, std::int64_t i) {
    return state_in(&partials[(work.first_partial + i) * partial_floats], work.block.num_queries());
  };
  pool.parallel_for(num_partials, [&](std::int64_t task, int) {
    const auto after = std::upper_bound(
        all.begin(), all.end(), task, [](std::int64_t index, const Work& work) { return index < work.first_partial; });
    const Work& work = *(after - 1);
    const std::int64_t i = task - work.first_partial;
    kernels.attention_range(work.block, work.first_range + static_cast<std::int32_t>(i), partial(work, i));
  });
  for (const Work& work : all) fold(kernels, work, out_stride, [&](std::int32_t i) { return partial(work, i); });
}

namespace cpu_ops {

void paged_attention(ThreadPool& pool, QkvView qkv, std::span<const SequenceRows> sequences, KvLayer cache,
                     ScoreRule scores, std::int32_t window, float* out) {
  minisgl::paged_attention(cpu_kernels(), pool, qkv, sequences, cache, scores, window, out);
}

}  // namespace cpu_ops
}  // namespace minisgl
