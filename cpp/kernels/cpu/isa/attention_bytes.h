// A tile of an int8 cache: attention.cpp has what it is for.
//
// Queries become integers of 16 bits with a scale for each, so that a score is an exact sum of integers, in whatever
// order and by whichever instructions, times three floats. That rounds a query 256 times finer than the keys are
// rounded, and depends on the query alone. Values are converted where they are used: that costs less than keeping them.
#pragma once

#include "kernels/cpu/isa/attention_tile.h"

namespace minisgl::MINISGL_ISA {

// q[i] = x[i] / scale in integers, scale = max |x| / 32767: the scale, NaN where x has anything that isn't finite.
inline float quantize_query(const float* x, int size, std::int16_t* q) {
  F32x8 largest = F32x8::zero(), poison = F32x8::zero();
  for (int i = 0; i < size; i += 8) {
    const F32x8 value = F32x8::load(x + i);
    largest = max(abs(value), largest);
    poison = fma(value, F32x8::zero(), poison);
  }
  const float top = reduce_max(largest);
  const float inverse = top > 1e-30f ? 32767.0f / top : 0.0f;  // not finite for much smaller ones
  const F32x8 limit = F32x8::splat(32767.0f);
  for (int i = 0; i < size; i += 8) {
    const F32x8 scaled = F32x8::load(x + i) * F32x8::splat(inverse);
    store_i16(to_i32(max(min(scaled, limit), F32x8::zero() - limit)), q + i);
  }
  return top / 32767.0f + reduce_add(poison);
}

class ByteTile {
 public:
#if defined(MINISGL_ISA_AVX512VNNI)
  static constexpr int queries_at_once = 4;  // with 4 accumulators each, of 32 registers
  static constexpr int groups_at_once = 4;
#else
  static constexpr int queries_at_once = 3;
  static constexpr int groups_at_once = 2;
#endif

  struct Queries {
    alignas(64) std::int16_t v[kMaxBlockQueries * kMaxHeadDim];  // [num_queries, head_dim]
    float scales[kMaxBlockQueries];
  };
  static void prepare(const AttentionBlock& block, Queries& queries) {
    alignas(64) float scaled[kMaxBlockQueries * kMaxHeadDim];
    copy_scaled_queries(block, scaled);
    for (int q = 0; q < block.num_rows * block.num_heads; ++q)
      queries.scales[q] = quantize_query(scaled + q * block.head_dim, block.head_dim, queries.v + q * block.head_dim);
  }

  static std::int64_t row_size(const AttentionBlock& block) { return block.head_dim; }

  void load(const AttentionBlock& block, std::int32_t start, Positions wanted, Positions next) {
    for (int i = 0; i < kTile; ++i) key_scales_[i] = value_scales_[i] = 0;
    for_each_run(block, wanted, [&](std::int32_t position, std::int64_t page, std::int64_t place, std::int32_t count) {
      const std::int64_t scale = page * block.scale_stride + place;
      for (std::int32_t i = 0; i < count; ++i) {
        key_scales_[position - start + i] = block.key_scales[scale + i];
        value_scales_[position - start + i] = block.value_scales[scale + i];
      }
    });
    const RowOffsets rows(block, start, wanted, block.head_dim), later(block, start + kTile, next, block.head_dim);
    const std::byte* keys[kTile];  // null where not wanted
    for (int i = 0; i < kTile; ++i) {
      keys[i] = rows.at[i] < 0 ? nullptr : block.keys + rows.at[i];
      rows_[i] = rows.at[i] < 0 ? nullptr : block.values + rows.at[i];
    }
    for (int first = 0; first < kTile; first += 8) {
      later.prefetch(block, first, 8, block.head_dim);
      transpose(keys + first, block.head_dim, first);
    }
  }

  template <int queries>
  void score(const Queries& all, int first, int head_dim, float* scores) const {
    for (int group = 0; group < kTile / 8; group += groups_at_once) {
      DotI16 sums[queries][groups_at_once];
      for (int quad = 0; quad < head_dim / 4; ++quad) {
        I8x32 keys[groups_at_once];
        for (int g = 0; g < groups_at_once; ++g) keys[g] = I8x32::load(keys_ + quad * kTile + 8 * (group + g));
        for (int q = 0; q < queries; ++q)
          for (int g = 0; g < groups_at_once; ++g) sums[q][g].add(keys[g], all.v + (first + q) * head_dim + 4 * quad);
      }
      for (int q = 0; q < queries; ++q) {
        const F32x8 scale = F32x8::splat(all.scales[first + q]);
        for (int g = 0; g < groups_at_once; ++g) {
          const int at = 8 * (group + g);
          (to_f32(sums[q][g].sum()) * scale * F32x8::load(key_scales_ + at)).store(scores + q * kTile + at);
        }
      }
    }
  }

  template <int queries>
  void add_values(float* weights, Positions seen, int head_dim, float* acc) const {
    for (int q = 0; q < queries; ++q)
      for (int i = 0; i < kTile; i += 8) {
        float* some = weights + q * kTile + i;
        (F32x8::load(some) * F32x8::load(value_scales_ + i)).store(some);
      }
    constexpr int lanes = 8 * Wide::groups, vectors = queries == 1 ? 8 : 4;
    int column = 0;
    for (; column + vectors * lanes <= head_dim; column += vectors * lanes)
      add_columns<Wide, queries, vectors>(weights, seen, column, head_dim, acc);
    for (; column + lanes <= head_dim; column += lanes)
      add_columns<Wide, queries, 1>(weights, seen, column, head_dim, acc);
    for (; column < head_dim; column += 8) add_columns<Narrow, queries, 1>(weights, seen, column, head_dim, acc);
  }

 private:
  // Puts 8 keys from the tile's position `first` on into keys_, as quads of dimensions.
  void transpose(const std::byte* const* keys, int head_dim, int first) {
    float* out = keys_ + first;  // only moved, never computed with
    int dim = 0;
    for (; dim + 32 <= head_dim; dim += 32) {
      F32x8 quads[8];
      for (int i = 0; i < 8; ++i)
        quads[i] = keys[i] == nullptr ? F32x8::zero() : F32x8::load(reinterpret_cast<const float*>(keys[i] + dim));
      store_transposed(quads, out + dim / 4 * kTile, kTile);
    }
    for (; dim < head_dim; dim += 4) {
      for (int i = 0; i < 8; ++i) {
        float* quad = out + dim / 4 * kTile + i;
        if (keys[i] == nullptr) {
          *quad = 0;
        } else {
          memcpy(quad, keys[i] + dim, 4);
        }
      }
    }
  }

  // acc[q, column ...] += the weights of the positions seen, in ascending order, times their values.
  template <typename Lanes, int queries, int vectors>
  void add_columns(const float* weights, Positions seen, int column, int head_dim, float* acc) const {
    constexpr int lanes = 8 * Lanes::groups;
    using F32 = typename Lanes::F32;
    F32 sums[queries][vectors];
    for (int q = 0; q < queries; ++q)
      for (int v = 0; v < vectors; ++v) sums[q][v] = F32::load(acc + q * head_dim + column + lanes * v);
    for (std::int32_t i = seen.begin; i < seen.end; ++i) {
      F32 factors[queries];
      for (int q = 0; q < queries; ++q) factors[q] = F32::splat(weights[q * kTile + i]);
      for (int v = 0; v < vectors; ++v) {
        const F32 operand = Lanes::load_i8s(rows_[i] + column + lanes * v);
        for (int q = 0; q < queries; ++q) sums[q][v] = fma(factors[q], operand, sums[q][v]);
      }
    }
    for (int q = 0; q < queries; ++q)
      for (int v = 0; v < vectors; ++v) sums[q][v].store(acc + q * head_dim + column + lanes * v);
  }

  alignas(64) float keys_[kMaxHeadDim / 4 * kTile];  // [head_dim / 4, kTile] of 4 signed bytes; 0 where nothing is seen
  alignas(64) float key_scales_[kTile];
  alignas(64) float value_scales_[kTile];
  const std::byte* rows_[kTile];  // each position's value, null where not wanted
};

}  // namespace minisgl::MINISGL_ISA
