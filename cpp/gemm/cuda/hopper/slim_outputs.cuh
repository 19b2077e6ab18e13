// What becomes of the sums of slim.cu: norms, biases, gates, and the residual that they are added to.
#pragma once

#include "gemm/cuda/hopper/slim_stages.cuh"

namespace minisgl::cuda::hopper {

// The sum of the first `count`, halves upon halves; they are written to.
template <int count, int all>
__device__ __forceinline__ float add_pairwise(float (&x)[all]) {
  if constexpr (count == 1) {
    return x[0];
  } else {
#pragma unroll
    for (int k = 0; k < count / 2; ++k) x[k] += x[k + count / 2];
    return add_pairwise<count / 2>(x);
  }
}

// The sums of squares that the rows' norms are made of, in kAdders shares for each row. Parts belong to kClasses by
// their number, and the classes' sums are added up pairwise, whoever adds them: a row's norm doesn't depend on n.
template <typename S>
struct RowNorms {
  static constexpr int n = S::kRows, kThreads = S::kConsumers, kClasses = 16;
  static constexpr int kAdders = n >= kThreads ? 1 : kThreads / n < kClasses ? kThreads / n : kClasses;
  static constexpr int kOwn = kClasses / kAdders;  // classes of an adder
  static_assert(kAdders * n <= kNormShares && kOwn * kAdders == kClasses && (kAdders & (kAdders - 1)) == 0);

  static __device__ __forceinline__ void add_squares(const SlimKernelArgs& args, float (&share)[kNormShares]) {
    constexpr int kAhead = 16;  // loads under way
    const int parts = slim_parts(args.inputs);
    for (int i = threadIdx.x; i < kAdders * n; i += kThreads) {
      const int row = i % n;
      if (row >= args.rows) continue;
      float of_class[kOwn] = {};
      for (int first = i / n; first < parts; first += kAhead * kAdders) {
        float part[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          const int p = first + k * kAdders;
          part[k] = p < parts ? args.norm.squares[std::int64_t{p} * args.all_rows + row] : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) of_class[k % kOwn] += part[k];
      }
      share[i] = add_pairwise<kOwn>(of_class);
    }
  }
  static __device__ __forceinline__ float inverse(const SlimKernelArgs& args, const float (&share)[kNormShares],
                                                  int row) {
    float adders[kAdders];
#pragma unroll
    for (int k = 0; k < kAdders; ++k) adders[k] = share[k * n + row];
    return rsqrtf(add_pairwise<kAdders>(adders) / static_cast<float>(args.inputs) + args.norm.eps);
  }
};

// Four neighbouring values, of which those from `count` on aren't there.
__device__ __forceinline__ float4 load_some(const float* from, int count) {
  if (count == 4) return __ldg(reinterpret_cast<const float4*>(from));
  return make_float4(count > 0 ? from[0] : 0, count > 1 ? from[1] : 0, count > 2 ? from[2] : 0, 0);
}
template <typename T>
__device__ __forceinline__ void store_some(T* to, float4 v, int count) {
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k < count) to[k] = from_float<T>(values[k]);
}
__device__ __forceinline__ float4 to_float4(uint2 v) {
  return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                     __uint_as_float(v.y & 0xffff0000u));
}
__device__ __forceinline__ uint2 to_bf16x4(float4 v) {
  return make_uint2(pack2<bf16>(v.x, v.y), pack2<bf16>(v.z, v.w));
}
__device__ __forceinline__ float gated(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// Sums of four neighbouring outputs of a row, of each block of the cluster that has a part of them: `most` or fewer.
template <int most>
struct Parts {
  static constexpr int kAtOnce = most == 1 ? 4 : 8 / most;  // of a thread: what is under way hides the blocks' distance
  float4 part[most];

  __device__ __forceinline__ void load(std::uint32_t at, int splits) {
    if constexpr (most == 1) {
      part[0] = load_shared<float4>(at);
    } else {
#pragma unroll
      for (int p = 0; p < most; ++p) part[p] = p < splits ? load_from_block(at, p) : make_float4(0, 0, 0, 0);
    }
  }
  // In the blocks' order. `count` of the outputs have a bias, from weight_row on.
  __device__ __forceinline__ float4 total(const SlimKernelArgs& args, float factor, int weight_row, int count) const {
    float4 all = part[0];
#pragma unroll
    for (int p = 1; p < most; ++p)
      all = make_float4(all.x + part[p].x, all.y + part[p].y, all.z + part[p].z, all.w + part[p].w);
    const float4 bias = args.bias != nullptr ? load_some(args.bias + weight_row, count) : make_float4(0, 0, 0, 0);
    return make_float4(all.x * factor + bias.x, all.y * factor + bias.y, all.z * factor + bias.z,
                       all.w * factor + bias.w);
  }
};
// Calls body.template operator()<most>() for the parts that there are.
template <typename Body>
__device__ __forceinline__ void with_parts(int splits, const Body& body) {
  if (splits == 1) return body.template operator()<1>();
  if (splits == 2) return body.template operator()<2>();
  if (splits <= 4) return body.template operator()<4>();
  return body.template operator()<8>();
}

// y = old + sum for four outputs of a row, and what the norm of y needs: 16 neighbours have 64 outputs.
__device__ __forceinline__ void store_added(const SlimKernelArgs& args, uint2 old_bits, float4 sum, int row,
                                            int output) {
  float squares = 0.0f;
  if (output < args.outputs) {
    const std::int64_t y_at = std::int64_t{row} * args.outputs + output;
    const float4 old = to_float4(old_bits);
    const uint2 stored = to_bf16x4(make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w));
    *reinterpret_cast<uint2*>(static_cast<bf16*>(args.y) + y_at) = stored;
    if (args.next.weight == nullptr) return;
    const float4 v = to_float4(stored), weight = __ldg(reinterpret_cast<const float4*>(args.next.weight + output));
    *reinterpret_cast<uint2*>(static_cast<bf16*>(args.next.scaled) + y_at) =
        to_bf16x4(make_float4(v.x * weight.x, v.y * weight.y, v.z * weight.z, v.w * weight.w));
    squares = v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  if (args.next.weight == nullptr) return;
  constexpr int kNeighbours = kSlimPart / 4;
  const unsigned neighbours = 0xffffu << (threadIdx.x % 32 / kNeighbours * kNeighbours);
#pragma unroll
  for (int mask = kNeighbours / 2; mask > 0; mask >>= 1) squares += __shfl_xor_sync(neighbours, squares, mask);
  if (threadIdx.x % kNeighbours == 0 && output < args.outputs)
    args.next.squares[std::int64_t{output / kSlimPart} * args.all_rows + row] = squares;
}
__device__ __forceinline__ void store_plain(const SlimKernelArgs& args, float4 v, int row, int output, int count) {
  const std::int64_t y_at = std::int64_t{row} * args.outputs + output;
  if (args.output == SkinnyOutput::f32) {
    float* y = static_cast<float*>(args.y) + y_at;
    if (args.outputs % 4 == 0) {
      *reinterpret_cast<float4*>(y) = v;
    } else {
      store_some(y, v, count);
    }
  } else {
    bf16* y = static_cast<bf16*>(args.y) + y_at;
    if (args.outputs % 4 == 0) {
      *reinterpret_cast<uint2*>(y) = to_bf16x4(v);
    } else {
      store_some(y, v, count);
    }
  }
}

// Makes outputs of the sums in shared memory, [n][kSumStride] f32 in each block of the cluster.
template <typename S, bool is_gated, int most>
__device__ __forceinline__ void write_outputs_of(const SlimKernelArgs& args, const SlimShare& share,
                                                 std::uint32_t sums_at, const float (&squares)[kNormShares]) {
  constexpr int kAtOnce = is_gated ? (Parts<most>::kAtOnce + 1) / 2 : Parts<most>::kAtOnce;
  constexpr int kQuads = S::kWeightRows / (is_gated ? 8 : 4);  // of a row
  const bool is_added = args.output == SkinnyOutput::added;
  const int first = share.rank * S::kConsumers + static_cast<int>(threadIdx.x);
  const int step = args.splits * S::kConsumers, end = args.rows * kQuads;
  for (int begin = first; begin < end; begin += kAtOnce * step) {
    Parts<most> sums[kAtOnce], ups[is_gated ? kAtOnce : 1];
    uint2 old[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * step;
      if (i >= end) continue;
      const int row = i / kQuads, place = i % kQuads * 4, output = share.first_output + place;
      const std::uint32_t at = sums_at + (row * S::kSumStride + place) * 4;
      sums[k].load(at, args.splits);
      if constexpr (is_gated) ups[k].load(at + S::kWeightRows * 2, args.splits);
      if (is_added && output < args.outputs)
        old[k] = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(args.y) + std::int64_t{row} * args.outputs +
                                                 output);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = begin + k * step;
      if (i >= end) continue;
      const int row = i / kQuads, output = share.first_output + i % kQuads * 4;
      const int count = min(4, args.outputs - output);
      const float factor = args.norm.squares != nullptr ? RowNorms<S>::inverse(args, squares, row) : 1.0f;
      float4 v = sums[k].total(args, factor, output, count);
      if (is_added) {
        store_added(args, old[k], v, row, output);
      } else if (output < args.outputs) {
        if constexpr (is_gated) {
          const float4 up = ups[k].total(args, factor, output + args.outputs, count);
          v = make_float4(gated(v.x, up.x), gated(v.y, up.y), gated(v.z, up.z), gated(v.w, up.w));
        }
        store_plain(args, v, row, output, count);
      }
    }
  }
}
template <typename S>
__device__ __forceinline__ void write_outputs(const SlimKernelArgs& args, const SlimShare& share, std::uint32_t sums_at,
                                              const float (&squares)[kNormShares]) {
  with_parts(args.splits, [&]<int most>() {
    if (args.output == SkinnyOutput::gated) {
      write_outputs_of<S, true, most>(args, share, sums_at, squares);
    } else {
      write_outputs_of<S, false, most>(args, share, sums_at, squares);
    }
  });
}

}  // namespace minisgl::cuda::hopper
