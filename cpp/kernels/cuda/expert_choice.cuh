// A router's choice for one row, by one warp.
#pragma once

#include <cstdint>

#include "core/cuda/math.cuh"
#include "kernels/activation.h"
#include "kernels/router.h"

namespace minisgl::cuda {

// Unsigned numbers in the order of floats. What is no number is 1; 0 is for what can't be chosen.
__device__ __forceinline__ std::uint32_t ordered(float x) {
  if (isnan(x)) return 1;
  const std::uint32_t bits = __float_as_uint(x + 0.0f);  // one zero
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

struct ExpertChoice {
  std::int32_t expert;  // of all ranks
  float weight;
};

// Lane j has the j-th of the chosen. per_lane: logits of a lane, neighbours, at least a 32nd of all.
template <int per_lane>
__device__ __forceinline__ ExpertChoice choose_experts(const float* logits, int num_experts, const RouterRule& rule) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32, first = lane * per_lane;
  const bool is_softmax = rule.scores == RouterRule::Scores::softmax;
  float logit[per_lane];
  std::uint32_t key[per_lane];
#pragma unroll
  for (int i = 0; i < per_lane; ++i) logit[i] = first + i < num_experts ? __ldcg(logits + first + i) : -INFINITY;
  float most = logit[0];
#pragma unroll
  for (int i = 1; i < per_lane; ++i) most = fmaxf(most, logit[i]);
  most = warp_max(most);
  float all = 1.0f;
  if (is_softmax && (!rule.normalized || rule.choice_bias != nullptr)) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) sum += first + i < num_experts ? __expf(logit[i] - most) : 0.0f;
    all = warp_sum(sum);
  }
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    float score = logit[i];  // of the same order as the scores
    if (rule.choice_bias != nullptr && first + i < num_experts)
      score = (is_softmax ? __expf(logit[i] - most) / all : sigmoid(logit[i])) + rule.choice_bias[first + i];
    key[i] = first + i < num_experts ? ordered(score) : 0;
  }
  ExpertChoice choice{0, 0.0f};
  for (int j = 0; j < rule.num_chosen; ++j) {
    std::uint32_t best = key[0];
    int at = 0;
    float of_best = logit[0];
#pragma unroll
    for (int i = 1; i < per_lane; ++i) {
      if (key[i] > best) {
        best = key[i];
        at = i;
        of_best = logit[i];
      }
    }
    // Of equal ones, the first lane's have the lower numbers.
    const int owner = __ffs(__ballot_sync(kAll, best == __reduce_max_sync(kAll, best))) - 1;
    const int expert = __shfl_sync(kAll, first + at, owner);
    const float its_logit = __shfl_sync(kAll, of_best, owner);
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      if (lane == owner && i == at) key[i] = 0;
    if (lane == j) choice = {expert, its_logit};
  }
  const bool is_chosen = lane < rule.num_chosen;
  float weight = is_softmax ? __expf(choice.weight - most) : sigmoid(choice.weight);
  if (rule.normalized) all = warp_sum(is_chosen ? weight : 0.0f);
  choice.weight = weight / all * rule.scale;
  return choice;
}

// Calls body.template operator()<per_lane>() for so many experts.
template <typename Body>
__device__ __forceinline__ auto with_logits_of_lane(int num_experts, const Body& body) {
  if (num_experts <= 64) return body.template operator()<2>();
  if (num_experts <= 128) return body.template operator()<4>();
  if (num_experts <= 256) return body.template operator()<8>();
  return body.template operator()<kMaxExperts / 32>();
}

__device__ __forceinline__ ExpertChoice choose_experts(const float* logits, int num_experts, const RouterRule& rule) {
  return with_logits_of_lane(num_experts,
                             [&]<int per_lane>() { return choose_experts<per_lane>(logits, num_experts, rule); });
}

__device__ __forceinline__ float activated(Activation activation, float gate, float up) {
  if (activation == Activation::silu) return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  if (activation == Activation::gelu_tanh) {
    const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
  }
  const float low = fminf(gate, kClampedSiluLimit);
  return low * sigmoid(kClampedSiluSlope * low) * (fminf(fmaxf(up, -kClampedSiluLimit), kClampedSiluLimit) + 1.0f);
}

// Eight values at a time.
__device__ __forceinline__ void unpack(uint4 v, float (&values)[8]) {
  const std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    values[2 * k] = __uint_as_float(words[k] << 16);
    values[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 normed(uint4 x, const float* weight, float inverse) {
  float v[8];
  unpack(x, v);
  const float4 low = __ldg(reinterpret_cast<const float4*>(weight)),
               high = __ldg(reinterpret_cast<const float4*>(weight + 4));
  return make_uint4(pack2<bf16>(v[0] * inverse * low.x, v[1] * inverse * low.y),
                    pack2<bf16>(v[2] * inverse * low.z, v[3] * inverse * low.w),
                    pack2<bf16>(v[4] * inverse * high.x, v[5] * inverse * high.y),
                    pack2<bf16>(v[6] * inverse * high.z, v[7] * inverse * high.w));
}
__device__ __forceinline__ void add_scaled(float (&sum)[8], uint4 x, float factor) {
  float v[8];
  unpack(x, v);
#pragma unroll
  for (int k = 0; k < 8; ++k) sum[k] += v[k] * factor;
}

}  // namespace minisgl::cuda
