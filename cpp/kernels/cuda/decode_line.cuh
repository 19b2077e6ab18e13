// How decode's work is dealt: the tiles of all sequences and heads lie in one line, which is cut evenly over the blocks
// of a grid that run all at once. Where the cuts lie depends on lengths in device memory alone, so a recorded launch
// serves any.
#pragma once

#include "kernels/cuda/attention.cuh"

namespace minisgl::cuda {

// Of the kernel for a cache of T, head sizes up to dim, and `queries` query heads of one KV head.
template <typename T_, int dim_, int queries_>
struct EvenShape {
  using T = T_;
  static constexpr int dim = dim_, queries = queries_;
  static constexpr int kPositions = dim <= 64 ? 32 : 16;  // of a tile
  static constexpr int kWarps = dim > 128 ? 2 : 4, kThreads = 32 * kWarps;
  static constexpr int kStages = 3;                      // of a warp's ring
  static constexpr int kResident = 2;                    // blocks of a processor
  static constexpr int kColumnBlocks = (dim + 63) / 64;  // of 64 columns
  static constexpr int kBlockBytes = 128 * kPositions;
  static constexpr int kHalf = kColumnBlocks * kBlockBytes;  // keys or values of a tile
  static constexpr int kStageBytes = 2 * kHalf;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kBytes = kWarps * kRingBytes + 1024;  // rings begin at a multiple of 1024
  static constexpr int kHeadTiles = 4;                       // what a head takes besides its tiles, as so many of them
  static constexpr int kLeastTiles = 256 / kPositions;  // of a block: merging smaller parts takes longer than they save
  static_assert(queries <= kPositions);                 // a warp's share fits into a stage
};

// Where in the line a sequence begins, and the tiles of each of its heads. A head's length in the line is that of its
// tiles and kHeadTiles more, for what it takes besides.
struct Place {
  std::int32_t index;  // of step.decodes
  std::int32_t begin, tiles;
};

// The positions that a sequence's row sees, and the tiles that they lie in.
template <int positions>
struct Span {
  std::int32_t begin, end, first;  // first: of the first tile
  __device__ Span(const SequenceEntry& sequence, std::int32_t window) : end(sequence.start_position + 1) {
    begin = window > 0 ? max(0, end - window) : 0;
    first = begin / positions * positions;
  }
  __device__ int tiles() const { return (end - first + positions - 1) / positions; }
};

// How the line is cut: every `length`, but at a head's border where that is less than `snap` tiles away.
template <int head_tiles>
struct Cuts {
  std::int32_t total, length, snap;

  // place: of the sequence that holds index * length, if there is one.
  __device__ std::int32_t cut(int index, const Place& place) const {
    const std::int32_t at = index * length;
    if (at >= total) return total;
    const std::int32_t before = (at - place.begin) % (place.tiles + head_tiles), after = place.tiles - before;
    if (before < snap && (after >= snap || before <= after)) return at - before;
    return after < snap ? at + after + head_tiles : at;
  }
  // Of a head with `tiles` tiles from `begin` on: the cuts inside are those of indices [first, first + count).
  __device__ void inside(std::int32_t begin, std::int32_t tiles, int& first, int& count) const {
    first = (begin + snap + length - 1) / length;
    count = begin + tiles < snap ? 0 : max(0, (begin + tiles - snap) / length - first + 1);
  }
};

template <typename S>
struct EvenShared {
  Place places[2];  // of the block's begin and end
  int warp_tiles[S::kWarps];
  float max[S::kWarps][S::queries], sum[S::kWarps][S::queries];
  std::uint32_t share_at[S::kWarps];
  bool is_last;
};

__device__ __forceinline__ SequenceEntry sequence_at(const StepData& step, int index) {
  return step.sequences[step.decodes[index]];
}

// Measures the line and finds the places of the block's own piece and the next.
template <typename S>
__device__ __forceinline__ Cuts<S::kHeadTiles> find_cuts(const AttentionArgs& args, int head_blocks,
                                                         EvenShared<S>& shared) {
  constexpr int kAtOnce = 4;
  const int n = args.step.num_decodes, each = (n + S::kThreads - 1) / S::kThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(n, first + each);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto length_of = [&](int index) {  // of each head
    const SequenceEntry sequence = sequence_at(args.step, index);
    return sequence.num_rows == 0 ? 0 : Span<S::kPositions>(sequence, args.window).tiles() + S::kHeadTiles;
  };
  std::int32_t own = 0;
  for (int i = first; i < last; i += kAtOnce) {
    std::int32_t lengths[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) lengths[k] = i + k < last ? length_of(i + k) : 0;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) own += lengths[k];
  }
  own *= head_blocks;
  std::int32_t upto = own;
#pragma unroll
  for (int by = 1; by < 32; by *= 2) {
    const std::int32_t before = __shfl_up_sync(0xffffffffu, upto, by);
    if (lane >= by) upto += before;
  }
  if (lane == 31) shared.warp_tiles[warp] = upto;
  __syncthreads();
  std::int32_t total = 0;
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) {
    if (w == warp) upto += total;
    total += shared.warp_tiles[w];
  }
  const auto blocks = static_cast<std::int32_t>(gridDim.x);
  const std::int32_t length = max(S::kLeastTiles + S::kHeadTiles, (total + blocks - 1) / blocks);
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const std::int32_t at = (static_cast<std::int32_t>(blockIdx.x) + k) * length;
    if (at < upto - own || at >= upto) continue;
    std::int32_t before = upto - own;
    for (int i = first; i < last; ++i) {
      const std::int32_t head = length_of(i);
      if (at < before + head * head_blocks) {
        shared.places[k] = {i, before, head - S::kHeadTiles};
        break;
      }
      before += head * head_blocks;
    }
  }
  __syncthreads();
  return {total, length, min(S::kLeastTiles / 2, max(1, 32 * S::kLeastTiles / length))};
}

// A block's piece: [begin, end) of the line. Where its end cuts a head, its part of that head comes first: the next
// block has its own part early, too, and both are merged long before the end. The rest follows in order.
struct Piece {
  std::int32_t begin, end;
  std::int32_t turn;  // where the part that comes first begins; `end`: there is none
};

// Visits the heads of a piece, of each the tiles [low, high).
template <typename S>
class Visits {
 public:
  std::int32_t begin, tiles;  // the whole head's, in the line
  int low, high;
  int head_block;
  SequenceEntry sequence;

  __device__ __forceinline__ void start(const AttentionArgs& args, int head_blocks, const Piece& piece,
                                        const Place (&places)[2]) {
    early_ = piece.turn < piece.end;
    place_at(args, head_blocks, piece, places[early_ ? 1 : 0], early_ ? piece.turn : piece.begin);
  }
  // false: that was the last.
  __device__ __forceinline__ bool advance(const AttentionArgs& args, int head_blocks, const Piece& piece,
                                          const Place (&places)[2]) {
    if (early_) {
      early_ = false;
      place_at(args, head_blocks, piece, places[0], piece.begin);
      return true;
    }
    if (begin + tiles + S::kHeadTiles >= piece.turn) return false;
    step(args, head_blocks);
    limit(piece);
    return true;
  }

 private:
  __device__ __forceinline__ void place_at(const AttentionArgs& args, int head_blocks, const Piece& piece,
                                           const Place& place, std::int32_t at) {
    index_ = place.index;
    sequence = sequence_at(args.step, index_);
    fetch_next(args);
    tiles = place.tiles;
    const int length = tiles + S::kHeadTiles;
    head_block = min((at - place.begin) / length, head_blocks - 1);
    begin = place.begin + head_block * length;
    if (at >= begin + length) step(args, head_blocks);
    limit(piece);
  }
  __device__ __forceinline__ void step(const AttentionArgs& args, int head_blocks) {
    begin += tiles + S::kHeadTiles;
    if (++head_block < head_blocks) return;
    head_block = 0;
    do {
      ++index_;
      sequence = next_;
      fetch_next(args);
    } while (sequence.num_rows == 0);
    tiles = Span<S::kPositions>(sequence, args.window).tiles();
  }
  __device__ __forceinline__ void limit(const Piece& piece) {
    low = max(0, piece.begin - begin);
    high = min(tiles, piece.end - begin);
  }
  __device__ __forceinline__ void fetch_next(const AttentionArgs& args) {
    if (index_ + 1 < args.step.num_decodes) next_ = sequence_at(args.step, index_ + 1);
  }
  bool early_;
  int index_;
  SequenceEntry next_;
};

}  // namespace minisgl::cuda
