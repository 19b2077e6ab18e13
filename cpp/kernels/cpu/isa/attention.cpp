// Attention of a block of queries over one range of positions, tile by tile with an online softmax.
//
// A tile's keys and values are brought into the form in which they are used once for the whole block (attention_tile.h
// and attention_bytes.h). Positions that a query must not see are never added, so nothing that lies there, not even a
// NaN, can reach it.
#include "kernels/cpu/isa/attention_bytes.h"
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/isa/kernels.h"
#include "kernels/cpu/isa/vector_math.h"

namespace minisgl::MINISGL_ISA {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

Positions intersect(Positions a, Positions b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// What the row at `position` sees.
Positions visible(std::int32_t position, std::int32_t window) {
  const std::int32_t first = window > 0 && position >= window ? position - window + 1 : 0;
  return {first, position + 1};
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

// `queries` queries of the block from `first` on over one tile; seen[q] counts from the tile's start.
template <int queries, typename Tile>
void attend(const AttentionBlock& block, const typename Tile::Queries& all, int first, const Tile& tile,
            const Positions* seen, const AttentionState& state) {
  const int head_dim = block.head_dim;
  alignas(64) float scores[queries * kTile];
  tile.template score<queries>(all, first, head_dim, scores);
  if (block.cap != 0.0f) scale_and_cap(scores, queries * kTile, 1.0f, block.cap);
  float* acc = state.acc + first * head_dim;
  bool same = true;
  for (int q = 0; q < queries; ++q) {
    same = same && seen[q] == seen[0];
    if (seen[q].empty()) continue;
    softmax_step(scores + q * kTile, seen[q], state.max[first + q], state.sum[first + q], acc + q * head_dim, head_dim);
  }
  if (same) {
    tile.template add_values<queries>(scores, seen[0], head_dim, acc);
    return;
  }
  for (int q = 0; q < queries; ++q)
    tile.template add_values<1>(scores + q * kTile, seen[q], head_dim, acc + q * head_dim);
}

// The same for `queries` of them, at most `most`.
template <int most, typename Tile>
void attend_some(int queries, const AttentionBlock& block, const typename Tile::Queries& all, int first,
                 const Tile& tile, const Positions* seen, const AttentionState& state) {
  if constexpr (most > 1) {
    if (queries < most) return attend_some<most - 1>(queries, block, all, first, tile, seen, state);
  }
  attend<most>(block, all, first, tile, seen, state);
}

// Adds the positions `here` to the state of every query of the block.
template <typename Tile>
void attend_to(const AttentionBlock& block, Positions here, const AttentionState& state) {
  const int num_queries = block.num_rows * block.num_heads;
  const std::int32_t first_tile = here.begin / kTile * kTile;
  RowOffsets(block, first_tile, intersect(here, {first_tile, first_tile + kTile}), Tile::row_size(block))
      .prefetch(block, 0, kTile, Tile::row_size(block));
  typename Tile::Queries queries;
  Tile::prepare(block, queries);
  Tile tile;
  for (std::int32_t start = first_tile; start < here.end; start += kTile) {
    const Positions tile_positions = {start, start + kTile};
    tile.load(block, start, intersect(here, tile_positions), intersect(here, {start + kTile, start + 2 * kTile}));
    for (int first = 0; first < num_queries; first += Tile::queries_at_once) {
      const int left = num_queries - first;
      const int count = left < Tile::queries_at_once ? left : Tile::queries_at_once;
      Positions seen[Tile::queries_at_once];
      bool any = false;
      for (int q = 0; q < count; ++q) {
        const std::int32_t position = block.first_position + (first + q) / block.num_heads;
        const Positions both = intersect(visible(position, block.window), tile_positions);
        seen[q] = both.empty() ? Positions{0, 0} : Positions{both.begin - start, both.end - start};
        any = any || !both.empty();
      }
      if (any) attend_some<Tile::queries_at_once>(count, block, queries, first, tile, seen, state);
    }
  }
}

}  // namespace

void attention_range(const AttentionBlock& block, std::int32_t range, const AttentionState& state) {
  const int num_queries = block.num_rows * block.num_heads;
  for (int q = 0; q < num_queries; ++q) {
    state.max[q] = kMinusInfinity;
    state.sum[q] = 0;
  }
  memset(state.acc, 0, sizeof(float) * num_queries * block.head_dim);

  const Positions block_sees = {visible(block.first_position, block.window).begin,
                                block.first_position + block.num_rows};
  const Positions here = intersect(block_sees, {range * kAttentionRange, (range + 1) * kAttentionRange});
  if (here.empty()) return;
  if (block.dtype == DType::i8) return attend_to<ByteTile>(block, here, state);
  attend_to<FloatTile>(block, here, state);
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
