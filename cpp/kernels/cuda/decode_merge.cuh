// Merging: what the warps of a block found of a head, and what several blocks did.
#pragma once

#include "kernels/cuda/decode_softmax.cuh"

namespace minisgl::cuda {

// What a block found of a head: over its warps, or over the blocks that have parts of it.
struct HeadAnswer {
  const AttentionArgs& args;
  bf16* out;       // [num_queries, head_dim]
  float* partial;  // where this part goes, or null: it is all
  int first_head, num_queries;
};

template <typename S>
__device__ __forceinline__ void merge_warps(const HeadAnswer& answer, const EvenShared<S>& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = answer.args.shape.head_dim;
  for (int query = warp; query < answer.num_queries; query += S::kWarps) {
    float max = -INFINITY, sum = 0.0f, weight[S::kWarps];
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) max = fmaxf(max, shared.max[w][query]);
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) {
      weight[w] = exp2_fast(shared.max[w][query] - max);  // 0 for a warp without a tile
      sum += weight[w] * shared.sum[w][query];
    }
    if (answer.partial != nullptr && lane == 0) {
      answer.partial[query] = max;
      answer.partial[kDecodeQueries + query] = sum;
    }
    const float inverse =
        answer.partial != nullptr ? 1.0f : 1.0f / (sum + sink_weight(answer.args, answer.first_head + query, max));
    for (int column = 4 * lane; column < head_dim; column += 128) {
      float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) {
        if (shared.share_at[w] == 0) continue;
        const float4 part = load_shared<float4>(shared.share_at[w] + TileSoftmax<S>::share_place(query, column));
        total.x += weight[w] * part.x;
        total.y += weight[w] * part.y;
        total.z += weight[w] * part.z;
        total.w += weight[w] * part.w;
      }
      const int at = query * head_dim + column;
      if (answer.partial != nullptr) {
        *reinterpret_cast<float4*>(answer.partial + 2 * kDecodeQueries + at) = total;
      } else {
        *reinterpret_cast<uint2*>(answer.out + at) = {pack2<bf16>(total.x * inverse, total.y * inverse),
                                                      pack2<bf16>(total.z * inverse, total.w * inverse)};
      }
    }
  }
}

// parts: of block `first`, and of the num_parts - 1 blocks behind it.
template <typename S>
__device__ __forceinline__ void merge_parts(const HeadAnswer& answer, int first, int num_parts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = answer.args.shape.head_dim;
  const std::int64_t part_floats = partial_floats(head_dim);
  // Of each block the first part that it writes is its first head's, the second its last head's.
  const float* parts = answer.args.partials + 2 * first * part_floats;
  const auto part_at = [&](int part) { return parts + (2 * part + (part == 0 ? 1 : 0)) * part_floats; };
  constexpr int kOwn = 2, kRound = 32 * kOwn, kAtOnce = 16;  // parts of a lane, of a round, whose loads go together
  for (int query = warp; query < answer.num_queries; query += S::kWarps) {
    float part_max[kOwn], part_sum[kOwn], max = -INFINITY;
    const auto look_at = [&](int from) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int part = from + 32 * i + lane;
        part_max[i] = part < num_parts ? __ldcg(part_at(part) + query) : -INFINITY;
        part_sum[i] = part < num_parts ? __ldcg(part_at(part) + kDecodeQueries + query) : 0.0f;
      }
    };
    for (int from = (num_parts - 1) / kRound * kRound; from >= 0; from -= kRound) {
      look_at(from);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) max = fmaxf(max, part_max[i]);
    }
    max = warp_max(max);
    for (int column = 4 * lane; column - 4 * lane < head_dim; column += 128) {
      const int own_column = min(column, head_dim - 4);
      float sum = 0.0f;
      float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
      for (int from = 0; from < num_parts; from += kRound) {
        if (num_parts > kRound) look_at(from);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const float weight = exp2_fast(part_max[i] - max);  // 0 where there is no part
          sum += weight * part_sum[i];
          const int first_part = from + 32 * i;
#pragma unroll 1
          for (int p = 0; p < min(32, num_parts - first_part); p += kAtOnce) {
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
              const float by = __shfl_sync(0xffffffffu, weight, p + k);
              const float4 part =
                  __ldcg(reinterpret_cast<const float4*>(part_at(min(first_part + p + k, num_parts - 1)) +
                                                         2 * kDecodeQueries + query * head_dim + own_column));
              total.x += by * part.x;
              total.y += by * part.y;
              total.z += by * part.z;
              total.w += by * part.w;
            }
          }
        }
      }
      // The sink is looked up here: in a register before, it would take the room in which the next kernel starts early.
      const float inverse = 1.0f / (warp_sum(sum) + sink_weight(answer.args, answer.first_head + query, max));
      if (column < head_dim)
        *reinterpret_cast<uint2*>(answer.out + query * head_dim + column) = {
            pack2<bf16>(total.x * inverse, total.y * inverse), pack2<bf16>(total.z * inverse, total.w * inverse)};
    }
  }
}

}  // namespace minisgl::cuda
