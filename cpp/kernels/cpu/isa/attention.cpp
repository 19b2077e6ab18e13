// Attention of a block of queries over one range of positions, tile by tile with an online softmax.
//
// A tile's keys and values are converted to f32 once for the whole block: keys transposed, so that scores and outputs
// are both small matrix products with one accumulator a result, summed in ascending order of dimension and position.
// Positions that a query must not see are never added, so nothing that lies there, not even a NaN, can reach it.
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/transpose.h"
#include "kernels/cpu/isa/vector_math.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr int kTile = kAttentionTile;
constexpr int kQueriesAtOnce = 3;  // 3 x 4 accumulators, 3 broadcasts and one operand fill 16 registers
constexpr float kMinusInfinity = -__builtin_inff();

struct Positions {
  std::int32_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Positions&) const = default;
};

Positions intersect(Positions a, Positions b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// What the row at `position` sees.
Positions visible(std::int32_t position, std::int32_t window) {
  const std::int32_t first = window > 0 && position >= window ? position - window + 1 : 0;
  return {first, position + 1};
}

// c[q][v] += sum over i of a[q][i] * b[i][v], i ascending; v counts lanes of `vectors` vectors.
template <int queries, int vectors>
inline void multiply_columns(const float* a, int a_stride, const float* b, int b_stride, int depth, float* c,
                             int c_stride) {
  F32x8 sums[queries][vectors];
  for (int q = 0; q < queries; ++q)
    for (int v = 0; v < vectors; ++v) sums[q][v] = F32x8::load(c + q * c_stride + 8 * v);
  for (int i = 0; i < depth; ++i) {
    F32x8 factors[queries];
    for (int q = 0; q < queries; ++q) factors[q] = F32x8::splat(a[q * a_stride + i]);
    for (int v = 0; v < vectors; ++v) {
      const F32x8 operand = F32x8::load(b + i * b_stride + 8 * v);
      for (int q = 0; q < queries; ++q) sums[q][v] = fma(factors[q], operand, sums[q][v]);
    }
  }
  for (int q = 0; q < queries; ++q)
    for (int v = 0; v < vectors; ++v) sums[q][v].store(c + q * c_stride + 8 * v);
}

template <int queries>
void multiply(const float* a, int a_stride, const float* b, int b_stride, int depth, int columns, float* c,
              int c_stride) {
  constexpr int wide = queries == 1 ? 8 : 4;
  int column = 0;
  for (; column + 8 * wide <= columns; column += 8 * wide)
    multiply_columns<queries, wide>(a, a_stride, b + column, b_stride, depth, c + column, c_stride);
  for (; column + 16 <= columns; column += 16)
    multiply_columns<queries, 2>(a, a_stride, b + column, b_stride, depth, c + column, c_stride);
  for (; column < columns; column += 8)
    multiply_columns<queries, 1>(a, a_stride, b + column, b_stride, depth, c + column, c_stride);
}

struct LoadF32 {
  static constexpr int size = 4;
  static F32x8 load(const std::byte* p) { return F32x8::load(reinterpret_cast<const float*>(p)); }
};
struct LoadF16 {
  static constexpr int size = 2;
  static F32x8 load(const std::byte* p) { return F32x8::load_f16(p); }
};
struct LoadBf16 {
  static constexpr int size = 2;
  static F32x8 load(const std::byte* p) { return F32x8::load_bf16(p); }
};

struct Tile {
  alignas(64) float keys[kMaxHeadDim * kTile];    // [head_dim, kTile]; 0 where the block sees nothing
  alignas(64) float values[kTile * kMaxHeadDim];  // [kTile, head_dim]; only rows that the block sees are written
};

// Reads the positions `wanted` of the tile that starts at `start`.
template <typename Load>
void load_tile(const AttentionBlock& block, std::int32_t start, Positions wanted, Tile& tile) {
  std::int64_t rows[kTile];  // byte offset of each position in the cache, -1 where not wanted
  for (int i = 0; i < kTile; ++i) rows[i] = -1;
  for (std::int32_t position = wanted.begin; position < wanted.end;) {
    const std::int32_t place = position % block.page_size;
    std::int64_t offset = block.page_table[position / block.page_size] * block.page_stride +
                          std::int64_t{place} * block.head_dim * Load::size;
    for (std::int32_t left = block.page_size - place; left > 0 && position < wanted.end; --left, ++position) {
      rows[position - start] = offset;
      offset += block.head_dim * Load::size;
    }
  }
  for (int first = 0; first < kTile; first += 8) {
    for (int dim = 0; dim < block.head_dim; dim += 8) {
      F32x8 keys[8];
      for (int i = 0; i < 8; ++i)
        keys[i] = rows[first + i] < 0 ? F32x8::zero() : Load::load(block.keys + rows[first + i] + dim * Load::size);
      store_transposed(keys, tile.keys + dim * kTile + first, kTile);
    }
  }
  for (std::int32_t i = wanted.begin - start; i < wanted.end - start; ++i)
    for (int dim = 0; dim < block.head_dim; dim += 8)
      Load::load(block.values + rows[i] + dim * Load::size).store(tile.values + i * block.head_dim + dim);
}

// Turns a query's scores of the tile into exp(score - max), 0 or next to it where not seen, and brings its max, sum
// and what it has accumulated to the new max.
void softmax_step(float* scores, Positions seen, float& max_so_far, float& sum_so_far, float* acc, int head_dim) {
  for (int i = 0; i < seen.begin; ++i) scores[i] = kMinusInfinity;
  for (int i = seen.end; i < kTile; ++i) scores[i] = kMinusInfinity;
  F32x8 lanes[kTile / 8];
  for (int i = 0; i < kTile / 8; ++i) lanes[i] = F32x8::load(scores + 8 * i);
  const float tile_max = reduce_max(max(max(lanes[0], lanes[1]), max(lanes[2], lanes[3])));
  if (tile_max > max_so_far) {
    const float shrink = exp(max_so_far - tile_max);
    for (int dim = 0; dim < head_dim; dim += 8) (F32x8::load(acc + dim) * F32x8::splat(shrink)).store(acc + dim);
    sum_so_far *= shrink;
    max_so_far = tile_max;
  }
  for (F32x8& lane : lanes) lane = exp(lane - F32x8::splat(max_so_far));
  for (int i = 0; i < kTile / 8; ++i) lanes[i].store(scores + 8 * i);
  sum_so_far += reduce_add((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
}

// Some queries, scaled, [queries, head_dim], over one tile; seen[q] counts from the tile's start.
template <int queries>
void attend(const float* query, const Tile& tile, const Positions* seen, int head_dim, float* max_so_far,
            float* sum_so_far, float* acc) {
  alignas(64) float scores[queries * kTile] = {};
  multiply<queries>(query, head_dim, tile.keys, kTile, head_dim, kTile, scores, kTile);
  bool same = true;
  for (int q = 0; q < queries; ++q) {
    same = same && seen[q] == seen[0];
    if (seen[q].empty()) continue;
    softmax_step(scores + q * kTile, seen[q], max_so_far[q], sum_so_far[q], acc + q * head_dim, head_dim);
  }
  if (same) {
    const int first = seen[0].begin;
    multiply<queries>(scores + first, kTile, tile.values + first * head_dim, head_dim, seen[0].end - first, head_dim,
                      acc, head_dim);
    return;
  }
  for (int q = 0; q < queries; ++q) {
    const int first = seen[q].begin;
    multiply<1>(scores + q * kTile + first, kTile, tile.values + first * head_dim, head_dim, seen[q].end - first,
                head_dim, acc + q * head_dim, head_dim);
  }
}

void attend_some(int queries, const float* query, const Tile& tile, const Positions* seen, int head_dim,
                 float* max_so_far, float* sum_so_far, float* acc) {
  switch (queries) {
    case 1: return attend<1>(query, tile, seen, head_dim, max_so_far, sum_so_far, acc);
    case 2: return attend<2>(query, tile, seen, head_dim, max_so_far, sum_so_far, acc);
    default: return attend<kQueriesAtOnce>(query, tile, seen, head_dim, max_so_far, sum_so_far, acc);
  }
}

void load_tile(const AttentionBlock& block, std::int32_t start, Positions wanted, Tile& tile) {
  switch (block.dtype) {
    case DType::f16: return load_tile<LoadF16>(block, start, wanted, tile);
    case DType::bf16: return load_tile<LoadBf16>(block, start, wanted, tile);
    default: return load_tile<LoadF32>(block, start, wanted, tile);
  }
}

void copy_scaled_queries(const AttentionBlock& block, float* out) {
  const F32x8 scale = F32x8::splat(block.scale);
  const int size = block.num_heads * block.head_dim;
  for (int row = 0; row < block.num_rows; ++row)
    for (int i = 0; i < size; i += 8)
      (F32x8::load(block.query + row * block.query_stride + i) * scale).store(out + row * size + i);
}

}  // namespace

void attention_range(const AttentionBlock& block, std::int32_t range, const AttentionState& state) {
  const int head_dim = block.head_dim;
  const int num_queries = block.num_rows * block.num_heads;
  for (int q = 0; q < num_queries; ++q) {
    state.max[q] = kMinusInfinity;
    state.sum[q] = 0;
  }
  memset(state.acc, 0, sizeof(float) * num_queries * head_dim);

  const Positions block_sees = {visible(block.first_position, block.window).begin,
                                block.first_position + block.num_rows};
  const Positions here = intersect(block_sees, {range * kAttentionRange, (range + 1) * kAttentionRange});
  if (here.empty()) return;

  alignas(64) float queries[kMaxBlockQueries * kMaxHeadDim];
  copy_scaled_queries(block, queries);
  Tile tile;
  for (std::int32_t start = here.begin / kTile * kTile; start < here.end; start += kTile) {
    const Positions tile_positions = {start, start + kTile};
    load_tile(block, start, intersect(here, tile_positions), tile);
    for (int first = 0; first < num_queries; first += kQueriesAtOnce) {
      const int count = num_queries - first < kQueriesAtOnce ? num_queries - first : kQueriesAtOnce;
      Positions seen[kQueriesAtOnce];
      bool any = false;
      for (int q = 0; q < count; ++q) {
        const std::int32_t position = block.first_position + (first + q) / block.num_heads;
        const Positions both = intersect(visible(position, block.window), tile_positions);
        seen[q] = both.empty() ? Positions{0, 0} : Positions{both.begin - start, both.end - start};
        any = any || !both.empty();
      }
      if (any)
        attend_some(count, queries + first * head_dim, tile, seen, head_dim, state.max + first, state.sum + first,
                    state.acc + first * head_dim);
    }
  }
}

void attention_merge(const AttentionState& total, const AttentionState& range, int num_queries, int head_dim) {
  for (int q = 0; q < num_queries; ++q) {
    if (range.max[q] == kMinusInfinity) continue;  // nothing seen: must not leave a trace, not even in a zero's sign
    const float top = total.max[q] > range.max[q] ? total.max[q] : range.max[q];
    const float old_share = exp(total.max[q] - top), new_share = exp(range.max[q] - top);
    total.max[q] = top;
    total.sum[q] = total.sum[q] * old_share + range.sum[q] * new_share;
    float* sums = total.acc + q * head_dim;
    const float* more = range.acc + q * head_dim;
    for (int dim = 0; dim < head_dim; dim += 8)
      fma(F32x8::load(more + dim), F32x8::splat(new_share), F32x8::load(sums + dim) * F32x8::splat(old_share))
          .store(sums + dim);
  }
}

void attention_finish(const AttentionState& total, int num_queries, int head_dim, float* out) {
  for (int q = 0; q < num_queries; ++q)
    for (int i = q * head_dim; i < (q + 1) * head_dim; i += 8)
      div(F32x8::load(total.acc + i), F32x8::splat(total.sum[q])).store(out + i);
}

}  // namespace minisgl::MINISGL_ISA
