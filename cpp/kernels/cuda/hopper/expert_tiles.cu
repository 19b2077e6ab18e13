// The products of experts whose rows lie together, on compute capability 9.0. With few rows an expert they are bound by
// reading the weights of the chosen experts once, with many by the tensor cores.
//
// A tile is 64 or 128 weight rows of an expert, which are the rows of the tensor cores' tiles, by up to n of its rows
// of x. As many blocks as there are processors take tiles in turn: one warp streams weights and x through stages in
// shared memory and runs ahead into the next tile, while the others finish this one. Which tiles there are is found
// from the slots that the device has counted, so that a launch doesn't depend on it.
#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/processors.h"
#include "core/cuda/runtime.h"
#include "core/cuda/tile_copies.cuh"
#include "core/error.h"
#include "gemm/cuda/hopper/tensor_map.h"
#include "kernels/cuda/expert_choice.cuh"
#include "kernels/cuda/experts.h"

namespace minisgl::cuda {
namespace {

using namespace hopper;

constexpr int kChunk = kTileColumns;  // inputs of a stage
constexpr int kGroupRows = 64;        // weight rows of a warpgroup
constexpr int kMostStages = 24;
constexpr int kMemory = 200 * 1024;  // of stages
constexpr int kBoxRows = 64;         // rows of x that are copied at once

struct ProductArgs {
  const float* bias;  // [num_experts, weight_rows] or null
  bf16* y;            // [slots, outputs]
  int weight_rows;    // of an expert
  int outputs;        // half of them where gated
  int chunks;
  int tiles;  // of an expert's weight rows
};

struct TilesArgs {
  ProductArgs product;
  bool is_second;  // of the two: without an activation
  const std::int32_t* offsets;
  Activation activation;
  int num_experts, stages;
};

template <int groups, int n>
struct TilesShape {
  static constexpr int kWeightRows = groups * kGroupRows;
  static constexpr int kConsumers = groups * 128;  // threads
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kWeightBytes = kWeightRows * kTileRowBytes;  // of a stage
  static constexpr int kStageBytes = kWeightBytes + n * kTileRowBytes;
  static constexpr int kBoxRows_ = n < kBoxRows ? n : kBoxRows;
  static constexpr int kStages = kMemory / kStageBytes < kMostStages ? kMemory / kStageBytes : kMostStages;
};

struct TilesBarriers {
  Barrier full[kMostStages], empty[kMostStages];
};

// A place in the ring of stages.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct Tile {
  int expert, weight_tile;
  int first_slot, rows;
};

// Which tiles there are: row_tiles[e] is the number of tiles of rows of the experts before e.
template <int n>
struct TileList {
  const std::int32_t* offsets;
  const std::int32_t* row_tiles;
  const TilesArgs& args;

  // False behind the last.
  __device__ __forceinline__ bool find(int index, Tile& tile) const {
    const int row_tile = index / args.product.tiles;
    if (row_tile >= row_tiles[args.num_experts]) return false;
    tile.weight_tile = index - row_tile * args.product.tiles;
    int low = 0, high = args.num_experts;  // the last expert with row_tiles[e] <= row_tile
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (row_tiles[middle] <= row_tile ? low : high) = middle;
    }
    tile.expert = low;
    const int in_expert = (row_tile - row_tiles[low]) * n;
    tile.first_slot = offsets[low] + in_expert;
    tile.rows = min(offsets[low + 1] - offsets[low] - in_expert, n);
    return true;
  }
};

// By all threads of the block.
template <int n>
__device__ __forceinline__ void list_tiles(const TilesArgs& args, std::int32_t* offsets, std::int32_t* row_tiles) {
  for (int e = threadIdx.x; e <= args.num_experts; e += blockDim.x) offsets[e] = __ldcg(args.offsets + e);
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x;
    int before = 0;
    for (int first = 0; first < args.num_experts; first += 32) {
      const int e = first + lane;
      const int own = e < args.num_experts ? (offsets[e + 1] - offsets[e] + n - 1) / n : 0;
      int inclusive = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, inclusive, step);
        if (lane >= step) inclusive += below;
      }
      if (e < args.num_experts) row_tiles[e] = before + inclusive - own;
      before += __shfl_sync(0xffffffffu, inclusive, 31);
    }
    if (lane == 0) row_tiles[args.num_experts] = before;
  }
  __syncthreads();
}

struct TilesMaps {
  CUtensorMap weights, x;
};

// One thread: the copies of all stages of all tiles of the block.
template <int groups, int n>
__device__ __forceinline__ void fetch_tiles(const TilesMaps& maps, const TilesArgs& args, const TileList<n>& list,
                                            std::uint32_t memory, TilesBarriers& barriers) {
  using S = TilesShape<groups, n>;
  constexpr Keep kKeep = n >= 128 ? Keep::normal : Keep::briefly;
  const ProductArgs& product = args.product;
  Tile tile{};
  int boxes = 0;
  const auto fetch_weights = [&](int chunk, int stage) {
    arrive_expecting(barriers.full[stage], S::kWeightBytes + boxes * S::kBoxRows_ * kTileRowBytes);
    copy_tile(maps.weights, tile.expert * product.weight_rows + tile.weight_tile * S::kWeightRows, chunk * kChunk,
              memory + stage * S::kStageBytes, barriers.full[stage], kKeep);
  };
  const auto fetch_x = [&](int chunk, int stage) {
    for (int box = 0; box < boxes; ++box)
      copy_tile(maps.x, tile.first_slot + box * S::kBoxRows_, chunk * kChunk,
                memory + stage * S::kStageBytes + S::kWeightBytes + box * S::kBoxRows_ * kTileRowBytes,
                barriers.full[stage], Keep::normal);
  };
  Turn turn;
  for (int index = blockIdx.x; list.find(index, tile); index += gridDim.x) {
    boxes = (tile.rows + S::kBoxRows_ - 1) / S::kBoxRows_;
    int ahead = 0;
    if (index == static_cast<int>(blockIdx.x)) {  // nobody has used the stages, and x may not be there yet
      ahead = min(args.stages, product.chunks);
      for (int chunk = 0; chunk < ahead; ++chunk) fetch_weights(chunk, chunk);
      wait_for_previous();
    }
    for (int chunk = 0; chunk < product.chunks; ++chunk, turn.advance(args.stages)) {
      if (chunk >= ahead) {
        barriers.empty[turn.stage].wait(turn.parity ^ 1);
        fetch_weights(chunk, turn.stage);
      }
      fetch_x(chunk, turn.stage);
    }
  }
  wait_for_previous();  // a block without tiles, too
}

// The products of a tile of which `used` of n rows are multiplied, and what becomes of them.
template <int groups, int n, int used>
__device__ __forceinline__ void multiply_tile(const TilesArgs& args, const Tile& tile, std::uint32_t memory,
                                              TilesBarriers& barriers, Turn& turn, float (&sums)[n / 8][4]) {
  using S = TilesShape<groups, n>;
  const ProductArgs& product = args.product;
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), group = warp / 4;
  auto& sum = reinterpret_cast<float (&)[used / 8][4]>(sums);
  int before = 0;
  for (int chunk = 0; chunk < product.chunks; ++chunk) {
    barriers.full[turn.stage].wait(turn.parity);
    const std::uint32_t stage = memory + turn.stage * S::kStageBytes;
    const std::uint32_t weights_at = stage + group * kGroupRows * kTileRowBytes, x_at = stage + S::kWeightBytes;
    touch(sum);
    begin_products();
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      Product<bf16, used>::shared(sum, tile_descriptor(weights_at + 32 * k, 16), tile_descriptor(x_at + 32 * k, 16),
                                  chunk > 0 || k > 0);
    }
    commit_products();
    if (chunk > 0) {
      wait_products<1>();
      if (lane == 0) barriers.empty[before].arrive();
    }
    before = turn.stage;
    turn.advance(args.stages);
  }
  wait_products<0>();
  touch(sum);
  if (lane == 0) barriers.empty[before].arrive();

  // A lane holds weight rows `row` and row + 8; transposed, outputs 2 * (lane % 4) and the next of one row of x.
  const int row = tile.weight_tile * S::kWeightRows + warp * 16 + lane / 4;
  const bool gated = !args.is_second;
  float bias[2] = {};
  if (product.bias != nullptr) {
    const float* its = product.bias + std::int64_t{tile.expert} * product.weight_rows;
    bias[0] = row < product.weight_rows ? its[row] : 0.0f;
    bias[1] = row + 8 < product.weight_rows ? its[row + 8] : 0.0f;
  }
  const int first = (tile.weight_tile * S::kWeightRows + warp * 16) / (gated ? 2 : 1);
  const int output = first + lane % 4 * 2;
  bf16* y = product.y + std::int64_t{tile.first_slot + lane / 4} * product.outputs + output;
#pragma unroll
  for (int j = 0; j < used / 8; ++j) {
    const bool here = 8 * j + lane / 4 < tile.rows;
    std::uint32_t pair[2];
    if (gated) {
      pair[0] = pack2<bf16>(activated(args.activation, sum[j][0] + bias[0], sum[j][2] + bias[1]),
                            activated(args.activation, sum[j][1] + bias[0], sum[j][3] + bias[1]));
    } else {
      pair[0] = pack2<bf16>(sum[j][0] + bias[0], sum[j][1] + bias[0]);
      pair[1] = transposed(pack2<bf16>(sum[j][2] + bias[1], sum[j][3] + bias[1]));
    }
    pair[0] = transposed(pair[0]);
    bf16* to = y + std::int64_t{8 * j} * product.outputs;
    if (here && output < product.outputs) *reinterpret_cast<std::uint32_t*>(to) = pair[0];
    if (!gated && here && output + 8 < product.outputs) *reinterpret_cast<std::uint32_t*>(to + 8) = pair[1];
  }
}

template <int groups, int n>
__global__ void __launch_bounds__(TilesShape<groups, n>::kThreads, 1)
    tiles_kernel(const __grid_constant__ TilesMaps maps, const __grid_constant__ TilesArgs args) {
  using S = TilesShape<groups, n>;
  extern __shared__ unsigned char unaligned[];
  __shared__ TilesBarriers barriers;
  __shared__ std::int32_t offsets[kMaxExperts + 1], row_tiles[kMaxExperts + 1];
  const std::uint32_t memory = (shared_address(unaligned) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < args.stages; ++stage) {
      barriers.full[stage].init(1);
      barriers.empty[stage].init(S::kConsumers / 32);
    }
    publish_barriers();
  }
  if (!args.is_second) wait_for_previous();
  let_next_start();
  list_tiles<n>(args, offsets, row_tiles);
  const TileList<n> list{offsets, row_tiles, args};
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // the compiler sees: all of a warp agree
  if (warp == S::kConsumers / 32) {
    if (threadIdx.x % 32 == 0) fetch_tiles<groups, n>(maps, args, list, memory, barriers);
    return;
  }
  Turn turn;
  Tile tile;
  float sums[n / 8][4];  // one for all kinds of tiles: the compiler finds no registers for several
  for (int index = blockIdx.x; list.find(index, tile); index += gridDim.x) {
    constexpr int kQuarter = n < 64 ? n : 64, kHalf = n < 128 ? n : 128;
    if (n == 256 && tile.rows <= kQuarter) {
      multiply_tile<groups, n, kQuarter>(args, tile, memory, barriers, turn, sums);
    } else if (n == 256 && tile.rows <= kHalf) {
      multiply_tile<groups, n, kHalf>(args, tile, memory, barriers, turn, sums);
    } else {
      multiply_tile<groups, n, n>(args, tile, memory, barriers, turn, sums);
    }
  }
}

// One of the two products.
struct Operands {
  bool is_second;
  const void* weights;
  const float* bias;
  const void* x;  // [slots, inputs]
  void* y;
  int weight_rows, outputs, inputs;
};

template <int groups, int n>
void launch_product(const ExpertsArgs& args, const Operands& operands, cudaStream_t stream) {
  using S = TilesShape<groups, n>;
  const int experts = args.weights.num_experts;
  const TilesMaps maps{
      .weights = tile_map(operands.weights, experts * operands.weight_rows, operands.inputs, S::kWeightRows, kChunk),
      .x = tile_map(operands.x, args.pairs(), operands.inputs, S::kBoxRows_, kChunk)};
  const TilesArgs tiles{.product = {.bias = operands.bias,
                                    .y = static_cast<bf16*>(operands.y),
                                    .weight_rows = operands.weight_rows,
                                    .outputs = operands.outputs,
                                    .chunks = (operands.inputs + kChunk - 1) / kChunk,
                                    .tiles = (operands.weight_rows + S::kWeightRows - 1) / S::kWeightRows},
                        .is_second = operands.is_second,
                        .offsets = args.scratch.offsets,
                        .activation = args.activation,
                        .num_experts = experts,
                        .stages = S::kStages};
  constexpr int kBytes = S::kStages * S::kStageBytes + 1024;
  const auto kernel = tiles_kernel<groups, n>;
  MINISGL_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  launch_kernel(kernel, dim3(static_cast<unsigned>(num_processors())), S::kThreads, kBytes, stream, maps, tiles);
}

template <int groups, int n>
void launch(const ExpertsArgs& args, cudaStream_t stream) {
  const ExpertWeights& w = args.weights;
  const ExpertScratch& scratch = args.scratch;
  launch_product<groups, n>(
      args, {false, w.gate_up, w.gate_up_bias, scratch.x, scratch.gated, 2 * w.width, w.width, w.hidden}, stream);
  launch_product<groups, n>(
      args, {true, w.down, w.down_bias, scratch.gated, scratch.outputs, w.hidden, w.hidden, w.width}, stream);
}

template <int n>
void launch_width(const ExpertsArgs& args, const ExpertTiling& tiling, cudaStream_t stream) {
  if constexpr (n <= 128) {
    if (tiling.wide == 0 || (tiling.wide < 0 && n < 32)) return launch<1, n>(args, stream);
  }
  launch<2, n>(args, stream);
}

}  // namespace

bool has_expert_tiles() {
  static const bool is_hopper = [] {
    int device = 0, major = 0;
    MINISGL_CUDA_CHECK(cudaGetDevice(&device));
    MINISGL_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major == 9;
  }();
  return is_hopper;
}

void multiply_expert_tiles(const ExpertsArgs& args, const ExpertTiling& tiling, cudaStream_t stream) {
  const double rows = static_cast<double>(args.pairs()) / args.weights.all_experts;  // of an expert, when even
  int tile_rows = tiling.tile_rows;
  if (tile_rows == 0) tile_rows = rows <= 2.5 ? 16 : rows <= 20 ? 32 : rows <= 48 ? 64 : rows <= 160 ? 128 : 256;
  if (tile_rows == 16) return launch_width<16>(args, tiling, stream);
  if (tile_rows == 32) return launch_width<32>(args, tiling, stream);
  if (tile_rows == 64) return launch_width<64>(args, tiling, stream);
  if (tile_rows == 128) return launch_width<128>(args, tiling, stream);
  launch_width<256>(args, tiling, stream);
}

}  // namespace minisgl::cuda
