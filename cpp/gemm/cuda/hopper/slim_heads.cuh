// What becomes of the sums of slim.cu where they are heads of attention: norms, rotation, and keys and values in the
// cache.
#pragma once

#include "gemm/cuda/hopper/slim_outputs.cuh"

namespace minisgl::cuda::hopper {

// What no kernel of the step makes: where rows stand and where their keys and values go.
__device__ __forceinline__ void load_places(const SlimKernelArgs& args, SlimBarriers& barriers, int threads) {
  for (int row = threadIdx.x; row < args.rows; row += threads) {
    barriers.positions[row] = args.heads.positions[row];
    barriers.cache_rows[row] = args.heads.cache_rows[row];
  }
}

// A block's tile is a head; a warp makes a row of it, a lane four neighbouring values.
template <typename S>
__device__ __forceinline__ void write_heads(const SlimKernelArgs& args, const SlimShare& share, std::uint32_t sums_at,
                                            const SlimBarriers& barriers) {
  constexpr int kWarps = S::kConsumers / 32;
  const SlimHeads& heads = args.heads;
  const int lane = threadIdx.x % 32, place = 4 * lane;
  const int head = share.first_output / kSlimHead;
  const bool is_query = head < heads.num_heads, is_value = head >= heads.num_heads + heads.num_kv_heads;
  const float* norm = is_value ? nullptr : is_query ? heads.query_norm : heads.key_norm;
  const float4 weight =
      norm != nullptr ? __ldg(reinterpret_cast<const float4*>(norm + place)) : make_float4(1, 1, 1, 1);
  const int first = share.rank * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int step = args.splits * kWarps;
  with_parts(args.splits, [&]<int most>() {
    constexpr int kAtOnce = Parts<most>::kAtOnce;
    for (int begin = first; begin < args.rows; begin += kAtOnce * step) {
      Parts<most> sums[kAtOnce];
      float4 cosine[kAtOnce], sine[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int row = begin + k * step;
        if (row >= args.rows) continue;
        sums[k].load(sums_at + (row * S::kSumStride + place) * 4, args.splits);
        if (is_value) continue;
        const float* table =
            heads.rope_table + std::int64_t{barriers.positions[row]} * kSlimHead + place % (kSlimHead / 2);
        cosine[k] = __ldg(reinterpret_cast<const float4*>(table));
        sine[k] = __ldg(reinterpret_cast<const float4*>(table + kSlimHead / 2));
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int row = begin + k * step;
        if (row >= args.rows) continue;
        const float factor = args.norm.squares != nullptr ? RowNorms<S>::inverse(args, barriers.squares, row) : 1.0f;
        float4 v = sums[k].total(args, factor, share.first_output + place, 4);
        if (norm != nullptr) {
          const float squares = warp_sum(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
          const float inverse = rsqrtf(squares / static_cast<float>(kSlimHead) + heads.eps);
          v = make_float4(v.x * inverse * weight.x, v.y * inverse * weight.y, v.z * inverse * weight.z,
                          v.w * inverse * weight.w);
        }
        if (!is_value) {
          const float sign = lane < 16 ? -1.0f : 1.0f;  // of the other half's part
          const auto rotated = [&](float x, float c, float s) {
            return x * c + sign * __shfl_xor_sync(0xffffffffu, x, 16) * s;
          };
          v = make_float4(rotated(v.x, cosine[k].x, sine[k].x), rotated(v.y, cosine[k].y, sine[k].y),
                          rotated(v.z, cosine[k].z, sine[k].z), rotated(v.w, cosine[k].w, sine[k].w));
        }
        bf16* to = static_cast<bf16*>(args.y) + std::int64_t{row} * args.outputs + share.first_output;
        if (!is_query) {
          const std::int32_t cache_row = barriers.cache_rows[row];
          if (cache_row < 0) continue;
          const int kv_head = (head - heads.num_heads) % heads.num_kv_heads;
          const std::int64_t page = cache_row / heads.page_size, in_page = cache_row % heads.page_size;
          to = static_cast<bf16*>(is_value ? heads.values : heads.keys) +
               ((page * heads.num_kv_heads + kv_head) * heads.page_size + in_page) * kSlimHead;
        }
        *reinterpret_cast<uint2*>(to + place) = to_bf16x4(v);
      }
    }
  });
}

}  // namespace minisgl::cuda::hopper
