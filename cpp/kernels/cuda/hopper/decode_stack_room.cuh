// How a step of all layers is cut over blocks and warps, and what a block keeps in shared memory.
#pragma once

#include <algorithm>

#include "kernels/cuda/hopper/decode_stack_attention.cuh"

namespace minisgl::cuda::stack {

constexpr int kSharedBytes = 227 * 1024;
constexpr int kMostSlots = 64;
// Slots that are asked for at a time. More than it takes to keep memory busy only make the words wait behind them;
// where the ring has room for much of a layer, weights come early enough one after the other.
constexpr int kMostComing = 4;

enum class Product { qkv, output, gate_up, down };

// How a product is cut: tiles of rows of weights over the blocks, of each its inputs by slots of the ring.
struct Cut {
  int tiles, inputs, slots;  // slots of a tile
};

// A block's share of a product: tiles.
struct Share {
  int first, end;
};
// Shared memory of a block, and how the step is cut. Offsets in bytes.
struct Room {
  int x;  // activations [rows] of the most inputs
  int attention;
  int norm;                    // [slots of a row][kSlotInputs] f32, of the next product
  int sums;                    // [2][kWarps][kPassRows][kTileRows] f32
  int squares, squares_bytes;  // [2][pairs of rows][slots of a row][2][kWarps] f32
  int residual;                // [rows][own columns] f32
  int barriers;                // full, then empty
  int layers;                  // [num_layers] StackLayer
  int rows;                    // [kKeptRows] of the cache
  int shares;                  // [4] Share
  int ring, slots, total;
  int most_coming;  // slots that are asked for and have not come
  bool has_rests;   // whether some inputs end within a slot
  Cut cuts[4];
  int most_tiles;  // of a pass
  Divisor by_rows;
};

constexpr int kRowBytes = kSlotInputs * 2 + kRowPad;  // of a slot
constexpr int kSlotBytes = kTileRows * kRowBytes;
constexpr int kSumBytes = kWarps * kPassRows * kTileRows * 4;  // of a pass

__device__ __forceinline__ Share share_of(const Cut& cut) {
  return {cut.tiles * static_cast<int>(blockIdx.x) / static_cast<int>(gridDim.x),
          cut.tiles * (static_cast<int>(blockIdx.x) + 1) / static_cast<int>(gridDim.x)};
}

// How a step is cut; no slots where it doesn't fit.
inline Room room_for(const StackArgs& args, int blocks) {
  const auto aligned = [](int bytes) { return (bytes + 127) / 128 * 128; };
  const int heads = args.num_heads * args.head_dim, key_heads = args.num_kv_heads * args.head_dim;
  const int outputs[4] = {heads + 2 * key_heads, args.hidden, 2 * args.intermediate, args.hidden};
  const int inputs[4] = {args.hidden, heads, args.hidden, args.intermediate};
  const int group = args.num_heads / args.num_kv_heads;
  const int most_inputs = std::max({args.hidden, heads, args.intermediate});
  const int attention = args.head_dim == 64 ? AttentionRoom<64>::bytes(group) : AttentionRoom<128>::bytes(group);
  const int own = (args.hidden / kTileRows + blocks - 1) / blocks * kTileRows;
  const auto full = [](int inputs) { return (inputs + kSlotInputs - 1) / kSlotInputs * kSlotInputs; };
  Room room{};
  room.has_rests = std::ranges::any_of(inputs, [&](int count) { return count % kSlotInputs != 0; });
  for (int p = 0; p < 4; ++p) room.cuts[p] = {outputs[p] / kTileRows, inputs[p], full(inputs[p]) / kSlotInputs};
  room.most_tiles = std::max(1, kPassRows / args.rows);
  room.by_rows = Divisor::of(args.rows);
  room.attention = aligned(room.x + args.rows * (full(most_inputs) * 2 + kRowPad));
  room.norm = aligned(room.attention + attention);
  room.sums = aligned(room.norm + full(args.hidden) * 4);
  room.squares = aligned(room.sums + 2 * kSumBytes);
  room.squares_bytes = (args.rows + 1) / 2 * 2 * room.cuts[0].slots * kWarps * 4;
  room.residual = aligned(room.squares + 2 * room.squares_bytes);
  room.barriers = aligned(room.residual + args.rows * own * 4);
  room.layers = aligned(room.barriers + 16 * kMostSlots);
  room.rows = aligned(room.layers + args.num_layers * static_cast<int>(sizeof(StackLayer)));
  room.shares = aligned(room.rows + kKeptRows * 4);
  room.ring = aligned(room.shares + 4 * static_cast<int>(sizeof(Share)));
  room.slots = std::clamp((kSharedBytes - room.ring) / kSlotBytes, 0, kMostSlots);
  int layer_slots = 0;
  for (const Cut& cut : room.cuts) layer_slots += (cut.tiles + blocks - 1) / blocks * cut.slots;
  room.most_coming = layer_slots <= 2 * room.slots ? 1 : std::min(kMostComing, room.slots);
  room.total = room.ring + room.slots * kSlotBytes;
  return room;
}

}  // namespace minisgl::cuda::stack
