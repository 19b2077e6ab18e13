// What the prefill kernels share: a tile of a sequence's queries, the values that must not reach them, their answers.
#pragma once

#include "kernels/cuda/e4m3.cuh"

namespace minisgl::cuda {

// The query heads of one KV head in consecutive rows of a sequence. Query i of the sequence is head i % group of row
// i / group.
struct PrefillTile {
  SequenceEntry sequence;
  int kv_head, group;
  int first_query, num_queries;  // none: this block has nothing to do
  std::int32_t window;
  std::int32_t first_position;  // the first row's
  std::int32_t begin, end;      // all that any row sees

  __device__ std::int32_t position_of(int query) const {
    return sequence.start_position + (first_query + query) / group;
  }
  __device__ std::int64_t row_of(int query) const { return sequence.first_row + (first_query + query) / group; }
  __device__ int head_of(int query) const { return kv_head * group + (first_query + query) % group; }
  __device__ Visible visible_to_lane(int query) const {
    return visible_to(position_of(query), position_of(query + 8), window);
  }
  // Whether some row may not see some of the `size` positions from `first` on.
  __device__ bool masks(std::int32_t first, int size) const {
    return first + size > first_position + 1 || (window > 0 && first < end - window);
  }
  __device__ bool all_see(std::int32_t position) const {
    return position <= first_position && (window == 0 || position >= end - window);
  }
  // Sets the positions, of which the rest is known.
  __device__ void see_positions() {
    first_position = position_of(0);
    end = position_of(num_queries - 1) + 1;
    begin = window > 0 ? max(0, first_position - window + 1) : 0;
  }
};

// grid: tiles of the longest sequence, the last rows first because they see the most; KV heads; sequences. positions:
// of a tile, where they are fixed.
__device__ __forceinline__ PrefillTile prefill_tile(const AttentionArgs& args, int most_queries, int positions) {
  PrefillTile tile{};
  tile.group = args.shape.num_heads / args.shape.num_kv_heads;
  tile.sequence = args.step.sequences[args.step.prefills[blockIdx.z]];
  tile.kv_head = blockIdx.y;
  tile.window = args.window;
  const int total = tile.sequence.num_rows * tile.group;
  const int index = (total + most_queries - 1) / most_queries - 1 - static_cast<int>(blockIdx.x);
  if (index < 0) return tile;
  tile.first_query = index * most_queries;
  tile.num_queries = min(most_queries, total - tile.first_query);
  tile.see_positions();
  if (args.fixed_tiles) tile.begin -= tile.begin % positions;
  return tile;
}
inline dim3 prefill_grid(const AttentionArgs& args, int most_queries) {
  const int group = args.shape.num_heads / args.shape.num_kv_heads;
  const int most_tiles = (args.step.most_prefill_rows * group + most_queries - 1) / most_queries;
  return {static_cast<unsigned>(most_tiles), static_cast<unsigned>(args.shape.num_kv_heads),
          static_cast<unsigned>(args.step.num_prefills)};
}

// Eight columns of a query from `column` on, in the cache's type; zeros past the head's size and past the queries.
// Loads in any case, so that several may be under way.
template <typename T>
__device__ __forceinline__ uint4 query_chunk(const AttentionArgs& args, const PrefillTile& tile, int query,
                                             int column) {
  const bool valid = query < tile.num_queries && column < args.shape.head_dim;
  const int known = valid ? query : 0;
  alignas(16) bf16 from[8];
  *reinterpret_cast<uint4*>(from) =
      *reinterpret_cast<const uint4*>(static_cast<const bf16*>(args.qkv) + tile.row_of(known) * args.shape.row_size() +
                                      tile.head_of(known) * args.shape.head_dim + (valid ? column : 0));
  alignas(16) T chunk[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) chunk[k] = from_float<T>(valid ? to_float(from[k]) : 0.0f);
  return *reinterpret_cast<const uint4*>(chunk);
}

// Products take every position of a tile, with weight 0 where a row doesn't see it; but 0 * infinity is NaN. So values
// of tiles that mask anything lose what isn't finite before the product, and rows that see it get it at the end.
template <typename T>
__device__ __forceinline__ std::uint32_t non_finite_of(std::uint32_t pair) {  // all bits of each such 16-bit value
  constexpr std::uint32_t exponent = std::is_same_v<T, bf16> ? 0x7f807f80u : 0x7c007c00u;
  return __vcmpeq2(pair & exponent, exponent);
}

// Replaces infinities and NaN of 8 values in shared memory, which are `pairs`, by 0; whether there were any.
template <typename T>
__device__ __forceinline__ bool clear_non_finite(void* values, const uint4& pairs) {
  const uint4 mask = {non_finite_of<T>(pairs.x), non_finite_of<T>(pairs.y), non_finite_of<T>(pairs.z),
                      non_finite_of<T>(pairs.w)};
  if ((mask.x | mask.y | mask.z | mask.w) == 0) return false;
  *static_cast<uint4*>(values) = {pairs.x & ~mask.x, pairs.y & ~mask.y, pairs.z & ~mask.z, pairs.w & ~mask.w};
  return true;
}
template <typename T>
__device__ __forceinline__ bool clear_non_finite(void* values) {
  return clear_non_finite<T>(values, *static_cast<const uint4*>(values));
}

// Adds what clear_non_finite() took away, to the rows that see it: a positive weight times it is itself.
template <typename T, int dim>
__device__ __forceinline__ void add_non_finite(const Pages<T>& pages, const PrefillTile& tile, const Visible& visible,
                                               int size, float (&acc)[dim / 8][4]) {
  for (std::int32_t first = tile.begin; first < tile.end; first += size) {
    if (!tile.masks(first, size)) continue;
    for (std::int32_t position = first; position < min(first + size, tile.end); ++position) {
      const T* values = pages.values + std::int64_t{pages.row_of(position)} * pages.head_dim + 2 * (threadIdx.x % 4);
#pragma unroll
      for (int j = 0; j < dim / 8; ++j) {
        if (8 * j >= pages.head_dim) break;
        const std::uint32_t pair = *reinterpret_cast<const std::uint32_t*>(values + 8 * j);
        const std::uint32_t mask = non_finite_of<T>(pair);
        if (mask == 0) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (position < visible.low[i / 2] || position >= visible.high[i / 2]) continue;
          if ((mask >> 16 * (i % 2) & 1) != 0) acc[j][i] += to_float(values[8 * j + i % 2]);
        }
      }
    }
  }
}

// The same for bytes: of a scale that is no number, nothing is finite.
template <typename T, int dim>
  requires std::is_same_v<T, e4m3>
__device__ __forceinline__ void add_non_finite(const Pages<T>& pages, const PrefillTile& tile, const Visible& visible,
                                               int size, float (&acc)[dim / 8][4]) {
  for (std::int32_t first = tile.begin; first < tile.end; first += size) {
    if (!tile.masks(first, size)) continue;
    for (std::int32_t position = first; position < min(first + size, tile.end); ++position) {
      const float scale = pages.value_scales[pages.row_of(position)];
      if (is_finite(scale)) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (position < visible.low[i / 2] || position >= visible.high[i / 2]) continue;
#pragma unroll
        for (int j = 0; j < dim / 8; ++j) acc[j][i] += scale;
      }
    }
  }
}

// A lane's two queries, of which `query` is the first.
template <int dim>
__device__ __forceinline__ void store_answers(const AttentionArgs& args, const PrefillTile& tile, int query,
                                              const Softmax<dim>& softmax) {
#pragma unroll
  for (int half = 0; half < 2; ++half, query += 8) {
    if (query >= tile.num_queries) continue;
    const float inverse = 1.0f / (softmax.sum[half] + sink_weight(args, tile.head_of(query), softmax.max[half]));
    bf16* out = static_cast<bf16*>(args.out) +
                (tile.row_of(query) * args.shape.num_heads + tile.head_of(query)) * args.shape.head_dim;
#pragma unroll
    for (int j = 0; j < dim / 8; ++j) {
      const int column = 8 * j + 2 * (threadIdx.x % 4);
      if (column < args.shape.head_dim) {
        *reinterpret_cast<std::uint32_t*>(out + column) =
            pack2<bf16>(softmax.acc[j][2 * half] * inverse, softmax.acc[j][2 * half + 1] * inverse);
      }
    }
  }
}

}  // namespace minisgl::cuda
