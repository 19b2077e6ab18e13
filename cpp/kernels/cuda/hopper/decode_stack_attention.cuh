// Attention within the kernel of all layers. A block takes one KV head of one row, or a part of its positions; a warp
// has tiles of 16 positions in registers, keys and values, which it asks for before the step's queries are there.
#pragma once

#include "kernels/cuda/hopper/decode_stack_words.cuh"

namespace minisgl::cuda::stack {

// Where attention keeps what its warps share. Queries, the new key and the new value
// [kMostQueries + 2][dim] bf16; greatest scores and sums [2][kWarps][kMostQueries] f32; weighted values
// [kWarps][queries][dim] f32.
template <int dim>
struct AttentionRoom {
  static constexpr int kHeads = 0;
  static constexpr int kPart = kHeads + (kMostQueries + 2) * dim * 2;
  static constexpr int kScores = kPart + 64;
  static constexpr int kValues = kScores + 2 * kWarps * kMostQueries * 4;
  static constexpr int bytes(int queries) { return kValues + kWarps * queries * dim * 4; }
};

// What a block has of a step's attention, the same in all layers.
struct AttentionPart {
  int item, part, head, row;
  int parts;  // of the row's positions; 0: nothing to do here; -1: nobody's row
  int position;
  int new_row;  // of keys and values, where the step's own go; -1: not from here
  int begin, end, tiles;
  const std::int32_t* pages;
};

// single: whether the step has one row.
template <int dim, bool single>
class Attention {
  using Places = AttentionRoom<dim>;
  static constexpr int kSteps = dim / 32, kHalves = dim / 64;
  static constexpr int kColumns = single ? 1 : 2;  // of the answer that a thread merges

 public:
  // cache_rows: [kKeptRows]
  __device__ Attention(const StackArgs& args, unsigned char* memory, std::int32_t* cache_rows)
      : args_(args),
        memory_(memory),
        kept_(cache_rows),
        own_(*reinterpret_cast<const AttentionPart*>(memory + Places::kPart)),
        warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32),
        group_(args.num_heads / args.num_kv_heads) {}

  // The block's part; all threads have it when they have met.
  __device__ __forceinline__ void prepare() {
    if (threadIdx.x == 0) *reinterpret_cast<AttentionPart*>(memory_ + Places::kPart) = find_part();
    sync_computing();
    for (int i = threadIdx.x; i < min(kKeptRows, own_.tiles * kPositions); i += kComputing)
      kept_[i] = find_row(own_.begin + i);
  }

  // Has the second-level cache ask for the keys and values of a warp's first tiles.
  __device__ __forceinline__ void fetch(const StackLayer& layer) const {
    if (own_.parts <= 0) return;
#pragma unroll 1
    for (int i = 0; i < kTilesAhead; ++i) fetch_tile(layer, warp_ + i * kWarps);
  }

  // next: the layer behind, or null.
  __device__ __forceinline__ void run(const StackLayer& layer, const StackLayer* next, std::uint32_t tag) {
    if (own_.parts == 0) return;
    const int out = (own_.row * args_.num_heads + own_.head * group_) * dim;
    if (own_.parts < 0) {
      const float zeros[kColumns] = {};
      for (int i = kColumns * threadIdx.x; i < group_ * dim; i += kColumns * kComputing) store(out + i, zeros, tag);
      return;
    }
    int tile = warp_;
    std::int32_t next_row = row_of(tile);
    load_keys(layer, next_row);
    load_values(layer, next_row);
    next_row = row_of(tile + kWarps);
    take_heads(layer, tag);
    sync_computing();
    if (tile < own_.tiles) {
      clear();
#pragma unroll 1
      for (; tile < own_.tiles; tile += kWarps) {
        const int first = own_.begin + tile * kPositions;
        const std::int32_t row = next_row;
        next_row = row_of(tile + 2 * kWarps);
        if (first + kPositions > own_.position) put_new_position(own_.position - first);
        const bool goes_on = tile + kWarps < own_.tiles;
        score(first);
        if (goes_on) load_keys(layer, row);
        fetch_tile(layer, tile + kTilesAhead * kWarps);
        weigh_values();
        if (goes_on) load_values(layer, row);
      }
      put_share();
    }
    sync_computing();
    merge(out, tag);
    if (next != nullptr) fetch(*next);
  }

 private:
  __device__ __forceinline__ void fetch_tile(const StackLayer& layer, int tile) const {
    const std::int32_t row = row_of(tile);
    if (row < 0) return;
    const bf16* from = (lane_ < kPositions ? layer.keys : layer.values) + std::int64_t{row} * dim;
#pragma unroll
    for (int i = 0; i < dim; i += 64) fetch_to_l2(from + i);
  }
  __device__ __forceinline__ void clear() {
    max_ = -INFINITY;
    sum_ = 0.0f;
#pragma unroll
    for (auto& columns : acc_) columns[0] = columns[1] = columns[2] = columns[3] = 0.0f;
  }

  __device__ AttentionPart find_part() const {
    AttentionPart own{};
    const int most_parts = static_cast<int>(gridDim.x) / (args_.rows * args_.num_kv_heads);
    own.item = blockIdx.x;
    own.part = own.item % most_parts;
    own.head = own.item / most_parts % args_.num_kv_heads;
    own.row = own.item / (most_parts * args_.num_kv_heads);
    if (own.row >= args_.rows) return own;
    const SequenceEntry sequence = args_.sequences[own.row];
    if (sequence.num_rows == 0) {  // nobody's row: zeros
      own.parts = own.part == 0 ? -1 : 0;
      return own;
    }
    own.position = args_.positions[own.row];
    own.pages = args_.pages + sequence.first_page;
    const int seen = own.position + 1;
    const int parts = min(most_parts, (seen + args_.part_positions - 1) / args_.part_positions);
    const int part_tiles = ((seen + kPositions - 1) / kPositions + parts - 1) / parts;
    if (own.part >= parts) return own;
    own.parts = parts;
    own.begin = own.part * part_tiles * kPositions;
    own.end = min(seen, own.begin + part_tiles * kPositions);
    own.tiles = max(0, (own.end - own.begin + kPositions - 1) / kPositions);
    const std::int32_t to = args_.cache_rows[own.row];
    own.new_row = -1;
    if (own.end == seen && to >= 0) {
      const int page = to / args_.page_size;
      own.new_row = (page * args_.num_kv_heads + own.head) * args_.page_size + (to - page * args_.page_size);
    }
    return own;
  }

  // The cache's row of a position; -1 of the step's own, and of those behind it.
  __device__ __forceinline__ std::int32_t find_row(int at) const {
    if (at >= min(own_.end, own_.position)) return -1;
    const int page = args_.by_page.quotient(at);
    return (__ldg(own_.pages + page) * args_.num_kv_heads + own_.head) * args_.page_size +
           (at - page * args_.page_size);
  }
  // That of position lane % 16 of a tile; -1 where it has none.
  __device__ __forceinline__ std::int32_t row_of(int tile) const {
    if (tile >= own_.tiles) return -1;
    const int at = tile * kPositions + lane_ % kPositions;
    return at < kKeptRows ? kept_[at] : find_row(own_.begin + at);
  }

  // Keys of positions lane / 4 and lane / 4 + 8, of each 32 columns the 8 from 8 * (lane % 4) on.
  __device__ __forceinline__ void load_keys(const StackLayer& layer, std::int32_t cache_row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t from = __shfl_sync(0xffffffffu, cache_row, lane_ / 4 + 8 * half);
      const bf16* keys = layer.keys + std::int64_t{from} * dim + lane_ % 4 * 8;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        key_[s][half] = make_uint4(0, 0, 0, 0);
        if (from >= 0) key_[s][half] = __ldcg(reinterpret_cast<const uint4*>(keys + 32 * s));
      }
    }
  }
  // Values of positions 2 * (lane % 4), the next, and 8 behind each, of each 64 columns the 8 from 8 * (lane / 4) on.
  __device__ __forceinline__ void load_values(const StackLayer& layer, std::int32_t cache_row) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int32_t from = __shfl_sync(0xffffffffu, cache_row, lane_ % 4 * 2 + i % 2 + i / 2 * 8);
      const bf16* values = layer.values + std::int64_t{from} * dim + lane_ / 4 * 8;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        value_[i][half] = make_uint4(0, 0, 0, 0);
        if (from >= 0) value_[i][half] = __ldcg(reinterpret_cast<const uint4*>(values + 64 * half));
      }
    }
  }

  // The row's queries of this KV head, its key and its value: norm and rotation; to shared memory and, from the last
  // part, key and value to the cache. A warp a head.
  __device__ __forceinline__ void take_heads(const StackLayer& layer, std::uint32_t tag) {
    const int row = own_.row, head = own_.head;
    const int i = 4 * lane_;
    const bool active = i < dim;
#pragma unroll 1
    for (int h = warp_; h < group_ + 2; h += kWarps) {
      const bool is_query = h < group_, is_value = h == group_ + 1;
      const int column = is_query   ? (head * group_ + h) * dim
                         : is_value ? (args_.num_heads + args_.num_kv_heads + head) * dim
                                    : (args_.num_heads + head) * dim;
      const float* norm = is_value ? nullptr : is_query ? layer.query_norm : layer.key_norm;
      float4 weight = {1.0f, 1.0f, 1.0f, 1.0f}, cosine = weight, sine = {0.0f, 0.0f, 0.0f, 0.0f};
      if (active && norm != nullptr) weight = __ldg(reinterpret_cast<const float4*>(norm + i));
      if (active && !is_value) {
        const float* table = args_.rope_table + std::int64_t{own_.position} * dim + i % (dim / 2);
        cosine = __ldg(reinterpret_cast<const float4*>(table));
        sine = __ldg(reinterpret_cast<const float4*>(table + dim / 2));
      }
      const int outputs = (args_.num_heads + 2 * args_.num_kv_heads) * dim;
      float x[4] = {};
      if (active) await_heads(row * outputs + column + i, tag, x);
      if (norm != nullptr) {
        const float squares = warp_sum(x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3]);
        const float inverse = rsqrtf(squares / dim + args_.head_eps);
        x[0] *= inverse * weight.x;
        x[1] *= inverse * weight.y;
        x[2] *= inverse * weight.z;
        x[3] *= inverse * weight.w;
      }
      if (!is_value) {
        const float sign = i < dim / 2 ? -1.0f : 1.0f;
        float other[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) other[k] = sign * __shfl_xor_sync(0xffffffffu, x[k], dim / 8);
        x[0] = x[0] * cosine.x + other[0] * sine.x;
        x[1] = x[1] * cosine.y + other[1] * sine.y;
        x[2] = x[2] * cosine.z + other[2] * sine.z;
        x[3] = x[3] * cosine.w + other[3] * sine.w;
      }
      const uint2 pairs = {pack2<bf16>(x[0], x[1]), pack2<bf16>(x[2], x[3])};
      if (!active) continue;
      const int place = is_query ? h : kMostQueries + (is_value ? 1 : 0);
      *reinterpret_cast<uint2*>(heads() + place * dim + i) = pairs;
      if (!is_query && own_.new_row >= 0)
        *reinterpret_cast<uint2*>((is_value ? layer.values : layer.keys) + std::int64_t{own_.new_row} * dim + i) =
            pairs;
    }
  }

  __device__ __forceinline__ void await_heads(int at, std::uint32_t tag, float (&x)[4]) const {
    if constexpr (single) {
      const auto* from = reinterpret_cast<const uint4*>(args_.words[0] + at);
      uint4 words = load_words(from);
      await_words(from, tag, words);
      x[0] = high_of(words.x);
      x[1] = high_of(words.y);
      x[2] = high_of(words.z);
      x[3] = high_of(words.w);
    } else {
      const uint2 pairs = await_pairs(reinterpret_cast<const uint2*>(pairs_of(args_, 0, tag) + at / 2));
      x[0] = low_of(pairs.x);
      x[1] = high_of(pairs.x);
      x[2] = low_of(pairs.y);
      x[3] = high_of(pairs.y);
    }
  }

  // The row's own key and value in their place of the tile.
  __device__ __forceinline__ void put_new_position(int place) {
    const bf16 *key = heads() + kMostQueries * dim, *value = key + dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (lane_ / 4 + 8 * half != place) continue;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) key_[s][half] = *reinterpret_cast<const uint4*>(key + 32 * s + lane_ % 4 * 8);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lane_ % 4 * 2 + i % 2 + i / 2 * 8 != place) continue;
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
        value_[i][half] = *reinterpret_cast<const uint4*>(value + 64 * half + lane_ / 4 * 8);
    }
  }

  // Weights of the tile's positions, and what was weighed before shrinks. The queries are rows of the product, of which
  // a lane has one, and its positions are those whose values it has.
  __device__ __forceinline__ void score(int first) {
    float d[2][2][4] = {};
    const int query = lane_ / 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      uint4 q = make_uint4(0, 0, 0, 0);
      if (query < group_) q = *reinterpret_cast<const uint4*>(heads() + query * dim + 32 * s + lane_ % 4 * 8);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma_16816<bf16>(d[half][0], {q.x, 0, q.y, 0}, key_[s][half].x, key_[s][half].y);
        mma_16816<bf16>(d[half][1], {q.z, 0, q.w, 0}, key_[s][half].z, key_[s][half].w);
      }
    }
    float weight[4], top = max_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool sees = first + lane_ % 4 * 2 + i % 2 + i / 2 * 8 < own_.end;
      weight[i] = sees ? (d[i / 2][0][i % 2] + d[i / 2][1][i % 2]) * args_.scale_log2 : -INFINITY;
      top = fmaxf(top, weight[i]);
    }
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, mask));
    const float shrink = exp2_fast(max_ - top);
    max_ = top;
    sum_ *= shrink;
#pragma unroll
    for (float& w : weight) {
      w = exp2_fast(w - top);
      sum_ += w;
    }
    weight_[0] = pack2<bf16>(weight[0], weight[1]);
    weight_[1] = pack2<bf16>(weight[2], weight[3]);
    const float shrinks[2] = {__shfl_sync(0xffffffffu, shrink, lane_ % 4 * 8),
                              __shfl_sync(0xffffffffu, shrink, lane_ % 4 * 8 + 4)};
#pragma unroll
    for (auto& columns : acc_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) columns[i] *= shrinks[i % 2];
    }
  }

  // Values come as rows of positions and are multiplied by columns: pairs of positions meet in registers.
  static __device__ __forceinline__ std::uint32_t pair_of(const uint4& even, const uint4& odd, int column) {
    const std::uint32_t low[4] = {even.x, even.y, even.z, even.w}, high[4] = {odd.x, odd.y, odd.z, odd.w};
    return __byte_perm(low[column / 2], high[column / 2], column % 2 == 0 ? 0x5410 : 0x7632);
  }
  // acc_[i] holds columns first_column(i) of the lane's upper row and of its lower.
  static __device__ constexpr int column_of(int i, bool lower) {
    return kHalves == 2 ? i + (lower ? 64 : 0) : 2 * i + (lower ? 1 : 0);
  }
  __device__ __forceinline__ void weigh_values() {
#pragma unroll
    for (int i = 0; i < dim / 16; ++i) {
      const int upper = column_of(i, false) % 8, lower = column_of(i, true) % 8;
      constexpr int kLower = kHalves - 1;
      mma_16816<bf16>(
          acc_[i],
          {pair_of(value_[0][0], value_[1][0], upper), pair_of(value_[0][kLower], value_[1][kLower], lower),
           pair_of(value_[2][0], value_[3][0], upper), pair_of(value_[2][kLower], value_[3][kLower], lower)},
          weight_[0], weight_[1]);
    }
  }

  __device__ __forceinline__ void put_share() {
    float total = sum_;
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) total += __shfl_xor_sync(0xffffffffu, total, mask);
    if (lane_ % 4 == 0) {
      scores()[warp_ * kMostQueries + lane_ / 4] = max_;
      scores()[(kWarps + warp_) * kMostQueries + lane_ / 4] = total;
    }
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int query = lane_ % 4 * 2 + q;
      if (query >= group_) continue;
      float* to = values() + (warp_ * group_ + query) * dim + lane_ / 4 * 8;
      if constexpr (kHalves == 2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 8; i += 4)
            *reinterpret_cast<float4*>(to + 64 * half + i) = make_float4(
                acc_[i][q + 2 * half], acc_[i + 1][q + 2 * half], acc_[i + 2][q + 2 * half], acc_[i + 3][q + 2 * half]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; i += 2)
          *reinterpret_cast<float4*>(to + 2 * i) =
              make_float4(acc_[i][q], acc_[i][q + 2], acc_[i + 1][q], acc_[i + 1][q + 2]);
      }
    }
  }

  // The shares of the block's warps become one, and those of a head's parts the answer, in the block of the first.
  __device__ __forceinline__ void merge(int out, std::uint32_t tag) {
    const int part_words = kMostQueries * (dim + 2), shares = min(kWarps, own_.tiles);
    std::uint64_t* words = args_.part_words + std::int64_t{own_.item} * part_words;
#pragma unroll 1
    for (int i = kColumns * threadIdx.x; i < group_ * dim; i += kColumns * kComputing) {
      const int query = i / dim;
      float top = -INFINITY;
#pragma unroll 4
      for (int w = 0; w < shares; ++w) top = fmaxf(top, scores()[w * kMostQueries + query]);
      float sum = 0.0f, acc[kColumns] = {};
#pragma unroll 4
      for (int w = 0; w < shares; ++w) {
        const float weight = exp2_fast(scores()[w * kMostQueries + query] - top);
        sum += weight * scores()[(kWarps + w) * kMostQueries + query];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) acc[k] += weight * values()[w * group_ * dim + i + k];
      }
      if (own_.part > 0) {
        if (i % dim == 0) {
          store_part(words + 2 * query, top, tag);
          store_part(words + 2 * query + 1, sum, tag);
        }
        std::uint64_t* to = words + 2 * kMostQueries + i;
        if constexpr (single)
          store_part(to, acc[0], tag);
        else
          store_parts(to, acc[0], acc[1], tag);
        continue;
      }
      constexpr int kTogether = 4;
#pragma unroll 1
      for (int first = 1; first < own_.parts; first += kTogether) {
        ulonglong2 scores[kTogether], pairs[kTogether];
        const std::uint64_t* from = words + first * part_words + 2 * query;
        const int values = 2 * (kMostQueries - query) + i / 2 * 2;
#pragma unroll
        for (int p = 0; p < kTogether; ++p) {
          if (first + p >= own_.parts) break;
          scores[p] = load_parts(from + p * part_words);
          pairs[p] = load_parts(from + p * part_words + values);
        }
#pragma unroll
        for (int p = 0; p < kTogether; ++p) {
          if (first + p >= own_.parts) break;
          await_parts(from + p * part_words, tag, scores[p]);
          await_parts(from + p * part_words + values, tag, pairs[p]);
          const float other_top = part_value(scores[p].x), new_top = fmaxf(top, other_top);
          const float own_weight = exp2_fast(top - new_top), weight = exp2_fast(other_top - new_top);
          sum = own_weight * sum + weight * part_value(scores[p].y);
          const float other[2] = {part_value(pairs[p].x), part_value(pairs[p].y)};
#pragma unroll
          for (int k = 0; k < kColumns; ++k)
            acc[k] = own_weight * acc[k] + weight * (single && i % 2 == 1 ? other[1] : other[k]);
          top = new_top;
        }
      }
#pragma unroll
      for (float& value : acc) value = __fdividef(value, sum);
      store(out + i, acc, tag);
    }
  }
  __device__ __forceinline__ void store(int at, const float (&value)[kColumns], std::uint32_t tag) const {
    if constexpr (single)
      store_word(args_.words[1] + at, value[0], tag);
    else
      store_pair(args_, 1, at / 2, tag, pack2<bf16>(value[0], value[1]));
  }

  __device__ bf16* heads() const { return reinterpret_cast<bf16*>(memory_ + Places::kHeads); }
  __device__ float* scores() const { return reinterpret_cast<float*>(memory_ + Places::kScores); }
  __device__ float* values() const { return reinterpret_cast<float*>(memory_ + Places::kValues); }

  const StackArgs& args_;
  unsigned char* memory_;
  std::int32_t* kept_;
  const AttentionPart& own_;
  int warp_, lane_, group_;
  uint4 key_[kSteps][2], value_[4][kHalves];
  float max_, sum_;  // of query lane / 4, in units of log 2; this lane's share
  std::uint32_t weight_[2];
  float acc_[dim / 16][4];
};

}  // namespace minisgl::cuda::stack
