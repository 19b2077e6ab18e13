// The warp of the kernel of all layers that streams weights.
#pragma once

#include "core/cuda/wgmma.cuh"
#include "kernels/cuda/hopper/decode_stack_room.cuh"

namespace minisgl::cuda::stack {

// The loader: this block's weights of all layers, in the order in which they are multiplied.
__device__ __forceinline__ void load_weights(const StackArgs& args, const Room& room, std::uint32_t memory) {
  const int lane = threadIdx.x % 32;
  int slot = 0, coming = 0, behind = -room.most_coming;  // slots: the next, the oldest asked for, those that have come
  std::uint32_t parity = 1, coming_parity = 0;           // the first waits for room find it
#pragma unroll 1
  for (int layer = 0; layer < args.num_layers; ++layer) {
#pragma unroll 1
    for (int p = 0; p < 4; ++p) {
      const auto product = static_cast<Product>(p);
      const Cut& cut = room.cuts[p];
      const Share share = share_of(cut);
      const bf16* weights = args.layers[layer].weights[p];
#pragma unroll 1
      for (int tile = share.first; tile < share.end; ++tile) {
        const int row =
            product == Product::gate_up ? tile * 4 + lane % 4 + lane / 4 * args.intermediate : tile * kTileRows + lane;
        const bf16* from = weights + std::int64_t{row} * cut.inputs;
#pragma unroll 1
        for (int chunk = 0; chunk < cut.slots; ++chunk) {
          const std::uint32_t full = memory + room.barriers + 8 * slot, empty = full + 8 * room.slots;
          wait_phase(empty, parity);
          if (behind++ >= 0) {
            wait_phase(memory + room.barriers + 8 * coming, coming_parity);
            if (++coming == room.slots) {
              coming = 0;
              coming_parity ^= 1;
            }
          }
          const int first = chunk * kSlotInputs;
          const auto bytes = static_cast<std::uint32_t>(min(kSlotInputs, cut.inputs - first) * 2);
          if (lane == 0) hopper::arrive_expecting(full, bytes * kTileRows);
          __syncwarp();
          if (lane < kTileRows)
            copy_row(memory + room.ring + slot * kSlotBytes + lane * kRowBytes, from + first, bytes, full);
          if (++slot == room.slots) {
            slot = 0;
            parity ^= 1;
          }
        }
      }
    }
  }
}

}  // namespace minisgl::cuda::stack
