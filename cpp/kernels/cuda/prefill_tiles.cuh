// A block's tiles of the prefill kernel: how keys and values come to shared memory, as the products take them.
#pragma once

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/prefill_tile.cuh"

namespace minisgl::cuda {

// Of 2-byte elements: two stages, each warp fetches its share of a tile's positions.
template <typename T, int dim, int warps>
class PrefillTiles {
 public:
  static constexpr int kPositions = dim > 128 ? 32 : 64;  // of a tile
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kBytes = 2 * 2 * kTile * static_cast<int>(sizeof(T));

  __device__ explicit PrefillTiles(unsigned char* memory)
      : keys_(reinterpret_cast<T*>(memory)), values_(keys_ + 2 * kTile) {}

  // Begins to load positions [first, first + kPositions); zeros at and past `end`.
  __device__ __forceinline__ void load(const Pages<T>& pages, std::int32_t first, std::int32_t end, int stage) {
    constexpr int share = kPositions / warps;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, offset = stage * kTile + warp * share * kStride<dim>;
    const std::int32_t own = first + warp * share + lane;
    const std::int32_t own_row = lane < share && own < end ? pages.row_of(own) : -1;
    load_rows<T, dim, share>(pages, own_row, keys_ + offset, values_ + offset, lane);
  }
  // Waits for all copies but the last group's: the stage holds its tile then, for every thread. Of a masked tile the
  // values that are not finite are 0 then.
  __device__ __forceinline__ void settle(int stage, bool masked, bool& has_non_finite) {
    wait_copies<1>();
    __syncthreads();
    if (!masked) return;
    bool any = false;
    for (int i = threadIdx.x; i < kPositions * (dim / 8); i += 32 * warps) {
      T* chunk = values_ + stage * kTile + i / (dim / 8) * kStride<dim> + i % (dim / 8) * 8;
      any = clear_non_finite<T>(chunk) || any;
    }
    if (any) has_non_finite = true;
    __syncthreads();
  }
  __device__ const T* keys(int stage) const { return keys_ + stage * kTile; }
  __device__ const T* values(int stage) const { return values_ + stage * kTile; }

 private:
  T *keys_, *values_;  // [2][kPositions, dim]
};

// Of bytes: two stages of them, and one tile of f16 that every thread fills from what itself it has fetched.
template <int dim, int warps>
class PrefillTiles<e4m3, dim, warps> {
 public:
  static constexpr int kPositions = dim > 128 ? 32 : 64;
  static constexpr int kTile = kPositions * kStride<dim>;
  static constexpr int kStageBytes = 2 * kPositions * (dim + static_cast<int>(sizeof(float)));
  static constexpr int kBytes = 2 * kTile * static_cast<int>(sizeof(half)) + 2 * kStageBytes;

  __device__ explicit PrefillTiles(unsigned char* memory)
      : keys_(reinterpret_cast<half*>(memory)),
        values_(keys_ + kTile),
        bytes_(reinterpret_cast<unsigned char*>(values_ + kTile)) {}

  __device__ __forceinline__ void load(const Pages<e4m3>& pages, std::int32_t first, std::int32_t end, int stage) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const std::int32_t position = first + warp * kShare + lane;
    const std::int32_t own_row = lane < kShare && position < end ? pages.row_of(position) : -1;
    load_byte_rows<dim, kShare>(pages, own_row, share_of(stage, warp), lane,
                                [](int row, int chunk) { return place(row, chunk); });
  }
  __device__ __forceinline__ void settle(int stage, bool masked, bool& has_non_finite) {
    wait_copies<1>();
    __syncwarp();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const ByteRows from = share_of(stage, warp);
    constexpr int chunks = dim / 16;
#pragma unroll 1  // the softmax under way leaves few registers
    for (int i = 0; i < kShare * chunks / 32; ++i) {
      const int row = (32 * i + lane) / chunks, chunk = (32 * i + lane) % chunks;
      const int to = (warp * kShare + row) * kStride<dim> + chunk * 16;
      const float value_scale = from.value_scales[row];
      const bool kept = !masked || is_finite(value_scale);
      if (!kept) has_non_finite = true;
      store(from.keys + place(row, chunk), row_factor(from.key_scales[row]), keys_ + to);
      store(from.values + place(row, chunk), kept ? row_factor(value_scale) : 0, values_ + to);
    }
    __syncthreads();
  }
  __device__ const half* keys(int) const { return keys_; }
  __device__ const half* values(int) const { return values_; }

 private:
  static constexpr int kShare = kPositions / warps;

  __device__ static int place(int row, int chunk) { return row * dim + chunk * 16; }
  __device__ ByteRows share_of(int stage, int warp) const {
    unsigned char* bytes = bytes_ + stage * kStageBytes;
    auto* scales = reinterpret_cast<float*>(bytes + 2 * kPositions * dim) + warp * kShare;
    return {.keys = bytes + warp * kShare * dim,
            .values = bytes + (kPositions + warp * kShare) * dim,
            .key_scales = scales,
            .value_scales = scales + kPositions};
  }
  __device__ static void store(const unsigned char* from, std::uint32_t factor, half* to) {
    uint4 values[2];
    widen_chunk(*reinterpret_cast<const uint4*>(from), factor, values);
    reinterpret_cast<uint4*>(to)[0] = values[0];
    reinterpret_cast<uint4*>(to)[1] = values[1];
  }

  half *keys_, *values_;  // [kPositions, dim]
  unsigned char* bytes_;
};

}  // namespace minisgl::cuda
