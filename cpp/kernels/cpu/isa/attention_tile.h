// Positions of a tile, and where a tile of plain floats keeps them: what attention.cpp asks of a tile, by FloatTile.
//
// A tile has Queries, prepare() to make them of a block's, row_size() of a key in bytes, load() to read the tile,
// score() and add_values().
#pragma once

#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/transpose.h"

namespace minisgl::MINISGL_ISA {

constexpr int kTile = kAttentionTile;

struct Positions {
  std::int32_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const Positions&) const = default;
};

// visit(index, page, place, count) for each run of positions `wanted` that lie side by side in a page.
template <typename Visit>
void for_each_run(const AttentionBlock& block, Positions wanted, const Visit& visit) {
  for (std::int32_t position = wanted.begin; position < wanted.end;) {
    const std::int32_t place = position % block.page_size;
    const std::int32_t left = block.page_size - place, asked = wanted.end - position;
    const std::int32_t count = left < asked ? left : asked;
    visit(position, block.page_table[position / block.page_size], place, count);
    position += count;
  }
}

// Where each position of a tile lies in the cache, in bytes of keys or values; -1 where not wanted.
struct RowOffsets {
  std::int64_t at[kTile];

  RowOffsets(const AttentionBlock& block, std::int32_t start, Positions wanted, std::int64_t row_size) {
    for (std::int64_t& offset : at) offset = -1;
    for_each_run(block, wanted, [&](std::int32_t position, std::int64_t page, std::int64_t place, std::int32_t count) {
      const std::int64_t offset = page * block.page_stride + place * row_size;
      for (std::int32_t i = 0; i < count; ++i) at[position - start + i] = offset + i * row_size;
    });
  }

  // Asks for `count` rows: pages are too short for the processor to see where they lead.
  void prefetch(const AttentionBlock& block, int first, int count, std::int64_t row_size) const {
    for (int i = first; i < first + count; ++i) {
      if (at[i] < 0) continue;
      for (std::int64_t offset = at[i]; offset < at[i] + row_size; offset += 64) {
        __builtin_prefetch(block.keys + offset, 0, 2);
        __builtin_prefetch(block.values + offset, 0, 2);
      }
    }
  }
};

// out[q, i] = the block's queries times its scale, [num_queries, head_dim].
inline void copy_scaled_queries(const AttentionBlock& block, float* out) {
  const F32x8 scale = F32x8::splat(block.scale);
  const int size = block.num_heads * block.head_dim;
  for (int row = 0; row < block.num_rows; ++row)
    for (int i = 0; i < size; i += 8)
      (F32x8::load(block.query + row * block.query_stride + i) * scale).store(out + row * size + i);
}

// c[q][v] += sum over i of a[q][i] * b[i][v], i ascending; v counts lanes of `vectors` vectors.
template <typename F32, int queries, int vectors>
inline void multiply_columns(const float* a, int a_stride, const float* b, int b_stride, int depth, float* c,
                             int c_stride) {
  constexpr int lanes = sizeof(F32) / sizeof(float);
  F32 sums[queries][vectors];
  for (int q = 0; q < queries; ++q)
    for (int v = 0; v < vectors; ++v) sums[q][v] = F32::load(c + q * c_stride + lanes * v);
  for (int i = 0; i < depth; ++i) {
    F32 operands[vectors];
    for (int v = 0; v < vectors; ++v) operands[v] = F32::load(b + i * b_stride + lanes * v);
    for (int q = 0; q < queries; ++q) {
      const F32 factor = F32::splat(a[q * a_stride + i]);
      for (int v = 0; v < vectors; ++v) sums[q][v] = fma(factor, operands[v], sums[q][v]);
    }
  }
  for (int q = 0; q < queries; ++q)
    for (int v = 0; v < vectors; ++v) sums[q][v].store(c + q * c_stride + lanes * v);
}

// The columns from `column` on that whole vectors cover.
template <typename F32, int queries, int vectors>
void multiply_some(const float* a, int a_stride, const float* b, int b_stride, int depth, int columns, float* c,
                   int c_stride, int& column) {
  constexpr int width = vectors * static_cast<int>(sizeof(F32) / sizeof(float));
  for (; column + width <= columns; column += width)
    multiply_columns<F32, queries, vectors>(a, a_stride, b + column, b_stride, depth, c + column, c_stride);
}

template <int queries>
void multiply(const float* a, int a_stride, const float* b, int b_stride, int depth, int columns, float* c,
              int c_stride) {
  int column = 0;
  multiply_some<Wide::F32, queries, queries == 1 ? 8 : 4>(a, a_stride, b, b_stride, depth, columns, c, c_stride,
                                                          column);
  multiply_some<Wide::F32, queries, 2>(a, a_stride, b, b_stride, depth, columns, c, c_stride, column);
  multiply_some<F32x8, queries, 1>(a, a_stride, b, b_stride, depth, columns, c, c_stride, column);
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

// Keys and values of plain floats, converted to f32 once for the whole block: keys transposed, so that scores and
// outputs are both small matrix products with one accumulator per result, summed in ascending order of dimension and
// position.
constexpr float kNoKey[kMaxHeadDim] = {};

class FloatTile {
 public:
#if defined(MINISGL_ISA_AVX512VNNI)
  static constexpr int queries_at_once = 6;  // with 4 accumulators each, of 32 registers
#else
  static constexpr int queries_at_once = 3;  // with 4 accumulators each, of 16 registers
#endif

  struct Queries {
    alignas(64) float v[kMaxBlockQueries * kMaxHeadDim];  // [num_queries, head_dim], scaled
  };
  static void prepare(const AttentionBlock& block, Queries& queries) { copy_scaled_queries(block, queries.v); }

  static std::int64_t row_size(const AttentionBlock& block) {
    return std::int64_t{block.head_dim} * (block.dtype == DType::f32 ? LoadF32::size : LoadF16::size);
  }

  // Reads the positions `wanted` of the tile that starts at `start`, and asks for the `next` ones.
  void load(const AttentionBlock& block, std::int32_t start, Positions wanted, Positions next) {
    switch (block.dtype) {
      case DType::f16: return load_as<LoadF16>(block, start, wanted, next);
      case DType::bf16: return load_as<LoadBf16>(block, start, wanted, next);
      default: return load_as<LoadF32>(block, start, wanted, next);
    }
  }

  // scores [queries, kTile] of the queries from `first` on, with every position of the tile.
  template <int queries>
  void score(const Queries& all, int first, int head_dim, float* scores) const {
    memset(scores, 0, sizeof(float) * queries * kTile);
    multiply<queries>(all.v + first * head_dim, head_dim, keys_, kTile, head_dim, kTile, scores, kTile);
  }

  // acc [queries, head_dim] += weights [queries, kTile] times the values that lie at `seen` in the tile. The weights
  // may be changed.
  template <int queries>
  void add_values(float* weights, Positions seen, int head_dim, float* acc) const {
    multiply<queries>(weights + seen.begin, kTile, values_ + seen.begin * head_dim, head_dim, seen.end - seen.begin,
                      head_dim, acc, head_dim);
  }

 private:
  template <typename Load>
  void load_as(const AttentionBlock& block, std::int32_t start, Positions wanted, Positions next) {
    const std::int64_t row_size = std::int64_t{block.head_dim} * Load::size;
    const RowOffsets rows(block, start, wanted, row_size), later(block, start + kTile, next, row_size);
    for (int first = 0; first < kTile; first += 8) {
      later.prefetch(block, first, 8, row_size);
      const std::byte* from[8];
      for (int i = 0; i < 8; ++i)
        from[i] = rows.at[first + i] < 0 ? reinterpret_cast<const std::byte*>(kNoKey) : block.keys + rows.at[first + i];
      for (int dim = 0; dim < block.head_dim; dim += 8) {
        F32x8 keys[8];
        for (int i = 0; i < 8; ++i) keys[i] = Load::load(from[i] + dim * Load::size);
        store_transposed(keys, keys_ + dim * kTile + first, kTile);
      }
    }
    for (std::int32_t i = wanted.begin - start; i < wanted.end - start; ++i)
      for (int dim = 0; dim < block.head_dim; dim += 8)
        Load::load(block.values + rows.at[i] + dim * Load::size).store(values_ + i * block.head_dim + dim);
  }

  alignas(64) float keys_[kMaxHeadDim * kTile];    // [head_dim, kTile]; 0 where the block sees nothing
  alignas(64) float values_[kTile * kMaxHeadDim];  // [kTile, head_dim]; only rows that the block sees are written
};

}  // namespace minisgl::MINISGL_ISA
