// The kernel of products of a single row by quantised weights. Bound by reading the weights once: their bytes over the
// read bandwidth is the floor. What comes next to it are instructions, so weights are multiplied as the bytes that they
// are in a step, by integers.
//
// A block per processor takes a share of the outputs, and its warps cut the input dimension. Each streams weights
// through a ring of its own, which is filled before the kernel that makes x is done. Then the block lays x into shared
// memory, where a norm is applied (x * weight; the sums are divided at the end): each 32 inputs become integers of 16
// bits with a scale of their own, and each integer two digits of 8 bits.
//
// Weights are the rows of the tensor cores' tiles, 16 at a time and 32 inputs deep. The columns of a tile are digits of
// runs: in columns 2 j and 2 j + 1 stand those of run j, and zeros for other runs, so that the sums of a unit's four
// runs come out side by side and each lane scales one of them. Sums of integers are exact.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cuda/launch.h"
#include "core/cuda/processors.h"
#include "core/error.h"
#include "gemm/cuda/quantised_form.cuh"

namespace minisgl::cuda::quantised {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kPassTiles = 4;  // of 16 weight rows
constexpr int kPassRows = 16 * kPassTiles;
constexpr int kColumns = static_cast<int>(kUnitColumns);
constexpr float kMostDigits = 127 * 256;  // of a magnitude

struct RowArgs {
  const std::byte* weights;
  const float* bias;
  const bf16* x;
  const float* norm;  // [inputs] or null
  float eps;
  void* y;
  SkinnyOutput output;
  int inputs, outputs;
};

// What shared memory holds beside the rings, of `padded` inputs: digits [chunk][run][2][share] 8 bytes; of each run its
// scale and the sums of x; sums of a pass, twice; squares.
template <typename Form>
struct RowShape {
  static constexpr int kStageBytes = 2 * Form::kBytes;
  static constexpr int kRunFloats = Form::kHalves ? 4 : 2;
  static constexpr int kShares = kWarps * kPassRows;
  static constexpr int kMemory = 113 * 1024;  // of a block: two fit a processor, one of the next kernel
  static constexpr int kMostStages = std::min(5, kMemory / (kWarps * kStageBytes));
  static constexpr int padded(int inputs) { return (inputs + kColumns - 1) / kColumns * kColumns; }
  static constexpr int other_bytes(int inputs) {
    return padded(inputs) * 2 + padded(inputs) / 32 * kRunFloats * 4 + 2 * kShares * 4 + kWarps * 4;
  }
  // Of a ring, at least two: beside the longest x a block has a processor for itself.
  static constexpr int stages(int inputs) {
    return std::clamp((kMemory - other_bytes(inputs)) / (kWarps * kStageBytes), 2, kMostStages);
  }
  static_assert(2 * kWarps * kStageBytes + other_bytes(static_cast<int>(kMostQuantisedInputs)) <= 227 * 1024);
};

// d = a · b + c of bytes, b signed.
__device__ __forceinline__ void multiply_bytes(int (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                               std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The norm's weights of 8 columns.
__device__ __forceinline__ void load_norm(const RowArgs& args, int first, float (&weight)[8]) {
  const float4 low = __ldg(reinterpret_cast<const float4*>(args.norm + first));
  const float4 high = __ldg(reinterpret_cast<const float4*>(args.norm + first + 4));
  weight[0] = low.x;
  weight[1] = low.y;
  weight[2] = low.z;
  weight[3] = low.w;
  weight[4] = high.x;
  weight[5] = high.y;
  weight[6] = high.z;
  weight[7] = high.w;
}

// x as it is multiplied. Returns the thread's squares. A thread takes 8 columns, four neighbours a run. first_norm: the
// norm's weights of the first that it takes, which were asked for before the weights of the product.
template <typename Form>
__device__ __forceinline__ float lay_out(const RowArgs& args, int padded, std::uint32_t digits_at, float* runs,
                                         const float (&first_norm)[8]) {
  constexpr float kShift = 12582912.0f;  // the low bits of its sum with an integer are the integer's
  float squares = 0.0f;
  for (int first = 8 * threadIdx.x; first < padded; first += 8 * kThreads) {  // all of a run's threads, or none
    float v[8] = {};
    if (first < args.inputs) {
      const uint4 bits = *reinterpret_cast<const uint4*>(args.x + first);
      const std::uint32_t word[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        v[2 * k] = __uint_as_float(word[k] << 16);
        v[2 * k + 1] = __uint_as_float(word[k] & 0xffff0000u);
      }
      if (args.norm != nullptr) {
        float weight[8];
        if (first == 8 * static_cast<int>(threadIdx.x)) {
#pragma unroll
          for (int k = 0; k < 8; ++k) weight[k] = first_norm[k];
        } else {
          load_norm(args, first, weight);
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          squares += v[k] * v[k];
          v[k] *= weight[k];
        }
      }
    }
    const unsigned threads = 0xfu << (threadIdx.x % 32 / 4 * 4);  // of the run
    float most = 0.0f, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      most = fmaxf(most, fabsf(v[k]));
      sum += v[k];
    }
    most = fmaxf(most, __shfl_xor_sync(threads, most, 1));
    most = fmaxf(most, __shfl_xor_sync(threads, most, 2));
    sum += __shfl_xor_sync(threads, sum, 1);  // of 16 columns
    const float other_sum = __shfl_xor_sync(threads, sum, 2);
    const float inverse = most > 0.0f ? kMostDigits / most : 0.0f;
    // Byte 0 is the low digit, signed; what that is short of goes to byte 1.
    std::uint32_t integer[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) integer[k] = __float_as_uint(fmaf(v[k], inverse, kShift));
    const int half = threadIdx.x / 2 % 2, w = threadIdx.x % 2;
    std::uint32_t high[4], low[4];  // of share s: this half's bytes of word w
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const std::uint32_t even = integer[2 * s], odd = integer[2 * s + 1];
      low[s] = (__byte_perm(even, odd, 0x0400) & 0x00ff00ffu) << (8 * half);
      high[s] = (__byte_perm(even + 128, odd + 128, 0x0501) & 0x00ff00ffu) << (8 * half);
    }
    // The first half's thread stores the high digits of both halves, the other one the low ones.
    const std::uint32_t to = digits_at + first / 32 * 64 + 32 * half + 4 * w;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const std::uint32_t theirs = __shfl_xor_sync(threads, half == 0 ? low[s] : high[s], 2);
      const std::uint32_t both = (half == 0 ? high[s] : low[s]) | theirs;
      asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to + 8 * s), "r"(both) : "memory");
    }
    if (threadIdx.x % 4 == 0) {
      const float scale = most * (1.0f / kMostDigits);
      if constexpr (Form::kHalves) {
        reinterpret_cast<float4*>(runs)[first / 32] = make_float4(scale, sum, other_sum, 0.0f);
      } else {
        reinterpret_cast<float2*>(runs)[first / 32] = make_float2(scale, sum + other_sum);
      }
    }
  }
  return squares;
}

// Adds a stage's sums for rows lane / 4 and lane / 4 + 8 of its tile, of run lane % 4.
template <typename Form>
__device__ __forceinline__ void add_stage(std::uint32_t stage_at, std::uint32_t digits_at, const float* runs, int lane,
                                          float (&total)[2]) {
  constexpr int kParts = Form::kHalves ? 2 : 1;
  const int run = lane % 4, row = lane / 4;
  RowShare<Form> share[2];
#pragma unroll
  for (int u = 0; u < 2; ++u)
    share[u].load(lane, [at = stage_at + u * Form::kBytes]<typename T>(int byte) { return load_shared<T>(at + byte); });
  const uint2 digits = load_shared<uint2>(digits_at + 8 * lane);
  int sum[kParts][4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    std::uint32_t words[2][2];
#pragma unroll
    for (int u = 0; u < 2; ++u) share[u].bytes(j, words[u]);
    const bool own = lane / 8 == j;
    const std::uint32_t b0 = own ? digits.x : 0, b1 = own ? digits.y : 0;
    if constexpr (Form::kHalves) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t of_half = h == 0 ? 0x00ff00ffu : 0xff00ff00u;
        multiply_bytes(sum[h], {words[0][0], words[1][0], words[0][1], words[1][1]}, b0 & of_half, b1 & of_half);
      }
    } else {
      multiply_bytes(sum[0], {words[0][0], words[1][0], words[0][1], words[1][1]}, b0, b1);
    }
  }
  float scale, x_sum[2] = {};
  if constexpr (Form::kHalves) {
    const float4 of_run = reinterpret_cast<const float4*>(runs)[run];
    scale = of_run.x;
    x_sum[0] = of_run.y;
    x_sum[1] = of_run.z;
  } else {
    const float2 of_run = reinterpret_cast<const float2*>(runs)[run];
    scale = of_run.x;
    x_sum[0] = of_run.y;
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const std::uint32_t scales_at = stage_at + u * Form::kBytes + Form::kScalesAt + row * Form::kScaleRowBytes;
#pragma unroll
    for (int h = 0; h < kParts; ++h) {
      const GroupScale<Form> of = scale_of<Form>(
          (32 * run + 16 * h) / Form::kGroup, [&]<typename T>(int byte) { return load_shared<T>(scales_at + byte); });
      const float product = static_cast<float>(256 * sum[h][2 * u] + sum[h][2 * u + 1]) * scale;
      total[u] = fmaf(of.scale, product, fmaf(of.offset, x_sum[h], total[u]));
    }
  }
}

template <typename Form, int stages>
__global__ void __launch_bounds__(kThreads, 2) row_kernel(const RowArgs args) {
  using Shape = RowShape<Form>;
  const bool is_gated = args.output == SkinnyOutput::gated;
  const int tile_outputs = is_gated ? 8 : 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int padded = Shape::padded(args.inputs);

  extern __shared__ __align__(128) unsigned char memory[];
  unsigned char* digits = memory + kWarps * stages * Shape::kStageBytes;
  float* runs = reinterpret_cast<float*>(digits + 2 * padded);
  float* shares = runs + padded / 32 * Shape::kRunFloats;  // [2][kWarps][kPassRows]
  float* square_shares = shares + 2 * Shape::kShares;
  const std::uint32_t ring_at = shared_address(memory) + warp * stages * Shape::kStageBytes;

  const int num_tiles = (args.outputs + tile_outputs - 1) / tile_outputs;
  const int num_chunks = padded / kColumns;
  const int last_unit = (args.outputs + 7) / 8 - 1;
  const int first_tile = static_cast<int>(std::int64_t{num_tiles} * blockIdx.x / gridDim.x);
  const int end_tile = static_cast<int>(std::int64_t{num_tiles} * (blockIdx.x + 1) / gridDim.x);
  const int chunks = (num_chunks - warp + kWarps - 1) / kWarps;  // the warp takes every kWarps-th

  // Half a warp copies the upper 8 rows of a tile, the other half the lower ones; tile by tile.
  const int lower = lane / 16, piece = lane % 16;
  const std::int64_t row_bytes = std::int64_t{num_chunks} * Form::kBytes;  // of units
  const std::byte* start = args.weights +
                           (is_gated ? first_tile + lower * (args.outputs / 8) : 2 * first_tile + lower) * row_bytes +
                           std::int64_t{warp} * Form::kBytes + piece * 16;
  const std::byte* from = start;
  int load_tile = chunks > 0 ? first_tile : end_tile, load_chunk = 0, load_slot = 0;
  const auto load_next = [&] {
    if (load_tile < end_tile) {
      const bool valid = is_gated || 2 * load_tile + lower <= last_unit;
      const std::uint32_t slot = ring_at + load_slot * Shape::kStageBytes + lower * Form::kBytes + piece * 16;
#pragma unroll
      for (int first = 0; first < Form::kBytes / 16; first += 16) {
        if (first + 16 <= Form::kBytes / 16 || first + piece < Form::kBytes / 16)
          copy_16_async(slot + 16 * first, from + 16 * first, valid);
      }
      from += kWarps * Form::kBytes;
      if (++load_chunk == chunks) {
        load_chunk = 0;
        ++load_tile;
        start += (is_gated ? 1 : 2) * row_bytes;
        from = start;
      }
    }
    commit_copies();
    load_slot = load_slot + 1 == stages ? 0 : load_slot + 1;
  };
  float first_norm[8] = {};
  if (args.norm != nullptr && 8 * static_cast<int>(threadIdx.x) < args.inputs)
    load_norm(args, 8 * static_cast<int>(threadIdx.x), first_norm);
#pragma unroll 1
  for (int i = 0; i < stages; ++i) load_next();
  let_next_start();  // the next kernel's weights queue up behind these
  wait_for_previous();
  const float squares = lay_out<Form>(args, padded, shared_address(digits), runs, first_norm);
  if (args.norm != nullptr) {
    const float of_warp = warp_sum(squares);
    if (lane == 0) square_shares[warp] = of_warp;
  }
  __syncthreads();

  const std::uint32_t digits_at = shared_address(digits) + warp * kColumns * 2;
  const float* warp_runs = runs + warp * 4 * Shape::kRunFloats;
  int slot = 0, buffer = 0;
  for (int tile = first_tile; tile < end_tile; tile += kPassTiles, buffer ^= 1) {
    const int tiles = min(kPassTiles, end_tile - tile);
    const int first_output = tile * tile_outputs;
    const int num_outputs = min(tiles * tile_outputs, args.outputs - first_output);
    float* pass_shares = shares + buffer * Shape::kShares;
    const bool writes = static_cast<int>(threadIdx.x) < num_outputs;
    float before = 0.0f;
    if (args.output == SkinnyOutput::added && writes)
      before = to_float(static_cast<const bf16*>(args.y)[first_output + threadIdx.x]);
#pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
      float total[2] = {};
#pragma unroll 1
      for (int i = 0; i < chunks; ++i) {
        wait_copies<stages - 1>();
        __syncwarp();
        add_stage<Form>(ring_at + slot * Shape::kStageBytes, digits_at + i * kWarps * kColumns * 2,
                        warp_runs + i * kWarps * 4 * Shape::kRunFloats, lane, total);
        __syncwarp();
        load_next();
        slot = slot + 1 == stages ? 0 : slot + 1;
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        float sum = total[u];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) pass_shares[warp * kPassRows + 16 * t + 8 * u + lane / 4] = sum;
      }
    }
    // The other buffer's sums were read before this: their readers are here.
    __syncthreads();
    if (!writes) continue;
    float factor = 1.0f;
    if (args.norm != nullptr) {
      float squares_of_all = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) squares_of_all += square_shares[w];
      factor = rsqrtf(squares_of_all / static_cast<float>(args.inputs) + args.eps);
    }
    const int column = first_output + threadIdx.x;
    const auto all_of = [&](int place, int weight_row) {
      float value = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += pass_shares[w * kPassRows + place];
      value *= factor;
      return args.bias != nullptr ? value + args.bias[weight_row] : value;
    };
    if (is_gated) {
      const int place = threadIdx.x / 8 * 16 + threadIdx.x % 8;
      const float gate = all_of(place, column), up = all_of(place + 8, column + args.outputs);
      static_cast<bf16*>(args.y)[column] = from_float<bf16>(gate / (1.0f + __expf(-gate)) * up);
    } else if (args.output == SkinnyOutput::f32) {
      static_cast<float*>(args.y)[column] = all_of(threadIdx.x, column);
    } else {
      static_cast<bf16*>(args.y)[column] = from_float<bf16>(before + all_of(threadIdx.x, column));
    }
  }
}

template <typename Form, int stages>
void launch_stages(const SkinnyArgs& args, cudaStream_t stream) {
  using Shape = RowShape<Form>;
  const auto kernel = row_kernel<Form, stages>;
  const int bytes = stages * kWarps * Shape::kStageBytes + Shape::other_bytes(static_cast<int>(args.inputs));
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, std::max(bytes, Shape::kMemory)));
  const std::int64_t tile_outputs = args.output == SkinnyOutput::gated ? 8 : 16;
  const std::int64_t tiles = (args.outputs + tile_outputs - 1) / tile_outputs;
  launch_kernel(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(tiles, num_processors()))), kThreads, bytes,
                stream,
                RowArgs{.weights = static_cast<const std::byte*>(args.weights.data),
                        .bias = args.bias,
                        .x = static_cast<const bf16*>(args.x),
                        .norm = args.norm,
                        .eps = args.eps,
                        .y = args.y,
                        .output = args.output,
                        .inputs = static_cast<int>(args.inputs),
                        .outputs = static_cast<int>(args.outputs)});
}

template <typename Form>
void launch_row(const SkinnyArgs& args, cudaStream_t stream) {
  using Shape = RowShape<Form>;
  const auto launch = [&]<int stages>(std::integral_constant<int, stages>) {
    if constexpr (stages <= Shape::kMostStages) {
      if (stages == Shape::stages(static_cast<int>(args.inputs))) launch_stages<Form, stages>(args, stream);
    }
  };
  launch(std::integral_constant<int, 2>());
  launch(std::integral_constant<int, 3>());
  launch(std::integral_constant<int, 4>());
  launch(std::integral_constant<int, 5>());
}

}  // namespace minisgl::cuda::quantised
