// Experts of few rows: each pair of a token and an expert reads the expert's weights. Bound by these reads: their bytes
// over the read bandwidth is the floor, where tokens have chosen different experts.
//
// Two kernels, each of which finds the choices for itself. A warp makes an output at a time; its lanes stream the
// weights through a ring in shared memory, of which a lane reads only what it has copied. The second kernel asks for
// its first weights while the first still runs: it depends on the logits alone, and those were written before the first
// kernel let it start.
#include <algorithm>

#include "core/cuda/launch.h"
#include "core/cuda/math.cuh"
#include "core/cuda/processors.h"
#include "core/error.h"
#include "kernels/cuda/expert_choice.cuh"
#include "kernels/cuda/experts.h"

namespace minisgl::cuda {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
constexpr int kLaneValues = 8;  // of a copy of 16 bytes
constexpr int kStages = 6;      // of two rows of weights each
constexpr int kAtOnce = 2;      // stages that are multiplied together
static_assert(kStages % kAtOnce == 0);
constexpr int kRingBytes = kWarps * kStages * 2 * 32 * 16;
constexpr int kMostInputBytes = 24 * 1024;  // of inputs kept in shared memory

struct FewArgs {
  const bf16* weights;
  const float* bias;
  const float* logits;
  RouterRule rule;
  Activation activation;
  const bf16* x;
  const float* norm;
  float eps;
  bf16* y;
  int rows, hidden, width;
  int num_experts, first_expert, all_experts, logit_stride;
  bool adds;
  bool keeps_inputs;  // in shared memory
  std::uint64_t* use;
};

struct Choices {
  std::int32_t expert[kMostFewRows * kMaxChosenExperts];  // of this device, or -1
  float weight[kMostFewRows * kMaxChosenExperts];
};

__device__ __forceinline__ void choose(const FewArgs& args, Choices& choices) {
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < args.rows; row += kWarps) {
    const ExpertChoice its =
        choose_experts(args.logits + std::int64_t{row} * args.logit_stride, args.all_experts, args.rule);
    if (lane >= args.rule.num_chosen) continue;
    const int here = its.expert - args.first_expert;
    choices.expert[row * args.rule.num_chosen + lane] = here >= 0 && here < args.num_experts ? here : -1;
    choices.weight[row * args.rule.num_chosen + lane] = its.weight;
  }
}

// By all threads of one block, when they have chosen.
__device__ __forceinline__ void count_use(const FewArgs& args, const Choices& choices) {
  int used = 0;
  for (int first = 0; first < args.rows * args.rule.num_chosen; first += kThreads) {
    const int pair = first + static_cast<int>(threadIdx.x);
    bool is_new = pair < args.rows * args.rule.num_chosen && choices.expert[pair] >= 0;
    for (int p = 0; is_new && p < pair; ++p) is_new = choices.expert[p] != choices.expert[pair];
    used += __syncthreads_count(is_new);
  }
  if (threadIdx.x == 0) {
    args.use[0] += 1;
    args.use[1] += used;
  }
}

// The rows of x, or their norms, in shared memory. The last warps take the first rows: the others choose.
__device__ __forceinline__ void load_inputs(const FewArgs& args, uint4* to) {
  const int lane = threadIdx.x % 32, vectors = args.hidden / kLaneValues;
  for (int row = kWarps - 1 - static_cast<int>(threadIdx.x) / 32; row < args.rows; row += kWarps) {
    const auto* from = reinterpret_cast<const uint4*>(args.x + std::int64_t{row} * args.hidden);
    uint4* its = to + row * vectors;
    if (args.norm == nullptr) {
#pragma unroll 8
      for (int i = lane; i < vectors; i += 32) its[i] = from[i];
      continue;
    }
    float squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < vectors; i += 32) {
      const uint4 v = from[i];
      its[i] = v;
      float values[8];
      unpack(v, values);
#pragma unroll
      for (int k = 0; k < 8; ++k) squares += values[k] * values[k];
    }
    const float inverse = rsqrtf(warp_sum(squares) / static_cast<float>(args.hidden) + args.eps);
#pragma unroll 8
    for (int i = lane; i < vectors; i += 32) its[i] = normed(its[i], args.norm + 8 * i, inverse);
  }
}

__device__ __forceinline__ float dot(uint4 a, uint4 b) {
  float x[8], y[8];
  unpack(a, x);
  unpack(b, y);
  float even = x[0] * y[0], odd = x[1] * y[1];
#pragma unroll
  for (int k = 2; k < 8; k += 2) {
    even += x[k] * y[k];
    odd += x[k + 1] * y[k + 1];
  }
  return even + odd;
}

// The outputs of a warp, `stride` apart: `column` of row `row`, of `cols` columns each.
struct Output {
  int row, column;
  int rows_on, columns_on, cols;

  __device__ Output(int first, int stride, int cols)
      : row(first / cols), column(first % cols), rows_on(stride / cols), columns_on(stride % cols), cols(cols) {}
  __device__ __forceinline__ void advance() {
    row += rows_on;
    column += columns_on;
    if (column < cols) return;
    column -= cols;
    ++row;
  }
};

// y [pairs, width] = what the activation makes of the pair's gates and ups.
__global__ void __launch_bounds__(kThreads, 2) few_gated_kernel(const FewArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ Choices choices;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chosen = args.rule.num_chosen;
  auto* ring = reinterpret_cast<uint4*>(memory) + warp * kStages * 64 + lane;
  auto* kept = reinterpret_cast<uint4*>(memory + kRingBytes);
  wait_for_previous();
  let_next_start();
  choose(args, choices);
  if (args.keeps_inputs) load_inputs(args, kept);
  __syncthreads();

  const int vectors = args.hidden / kLaneValues, pairs = args.rows * chosen;
  const int end = (vectors + 32 * kAtOnce - 1) / (32 * kAtOnce) * (32 * kAtOnce);
  const std::uint64_t policy = first_out_policy();
  const auto skip = [&](Output& output) {  // to one of an expert that is here
    while (output.row < pairs && choices.expert[output.row] < 0) output.advance();
  };
  Output output(warp * gridDim.x + blockIdx.x, gridDim.x * kWarps, args.width);
  skip(output);
  Output next = output;
  int column = lane, slot = 0;
  const uint4* weights = nullptr;  // the gate's row of `next`
  const auto find_row = [&] {
    if (next.row >= pairs) return;
    const std::int64_t row = std::int64_t{choices.expert[next.row]} * 2 * args.width +
                             next.column / kGateGroup * (2 * kGateGroup) + next.column % kGateGroup;
    weights = reinterpret_cast<const uint4*>(args.weights) + row * vectors;
  };
  find_row();
  const auto load_next = [&] {
    if (next.row < pairs) {
      const bool inside = column < vectors;
      const uint4* gate = weights + (inside ? column : 0);
      copy_16_async(shared_address(ring + slot * 64), gate, inside ? 16 : 0, policy);
      copy_16_async(shared_address(ring + slot * 64 + 32), gate + kGateGroup * vectors, inside ? 16 : 0, policy);
      column += 32;
      if (column >= end) {
        column = lane;
        next.advance();
        skip(next);
        find_row();
      }
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
    commit_copies();
  };
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) load_next();
  int read = 0;
  while (output.row < pairs) {
    const uint4* x =
        (args.keeps_inputs ? kept : reinterpret_cast<const uint4*>(args.x)) + output.row / chosen * vectors;
    float gates[kAtOnce] = {}, ups[kAtOnce] = {};
    for (int at = lane; at < end; at += 32 * kAtOnce) {
      uint4 input[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) input[k] = at + 32 * k < vectors ? x[at + 32 * k] : make_uint4(0, 0, 0, 0);
      wait_copies<kStages - kAtOnce>();
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        gates[k] += dot(ring[(read + k) * 64], input[k]);
        ups[k] += dot(ring[(read + k) * 64 + 32], input[k]);
      }
      read = read + kAtOnce == kStages ? 0 : read + kAtOnce;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) load_next();
    }
    float gate = warp_sum(gates[0] + gates[1]), up = warp_sum(ups[0] + ups[1]);
    if (lane == 0) {
      if (args.bias != nullptr) {
        const float* bias = args.bias + std::int64_t{choices.expert[output.row]} * 2 * args.width +
                            output.column / kGateGroup * (2 * kGateGroup) + output.column % kGateGroup;
        gate += bias[0];
        up += bias[kGateGroup];
      }
      args.y[output.row * args.width + output.column] = from_float<bf16>(activated(args.activation, gate, up));
    }
    output.advance();
    skip(output);
  }
  if (blockIdx.x == 0 && args.use != nullptr) count_use(args, choices);
}

// y [rows, hidden] = the sums of the pairs' outputs; x [pairs, width]. A warp makes two neighbouring outputs at a time.
__global__ void __launch_bounds__(kThreads, 2) few_down_kernel(const FewArgs args) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ Choices choices;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, chosen = args.rule.num_chosen;
  auto* ring = reinterpret_cast<uint4*>(memory) + warp * kStages * 64 + lane;
  auto* kept = reinterpret_cast<uint4*>(memory + kRingBytes);
  choose(args, choices);
  __syncthreads();

  const int vectors = args.width / kLaneValues, end = (vectors + 31) / 32 * 32;
  const int all_stages = chosen * (end / 32);
  const int stages = (all_stages + kAtOnce - 1) / kAtOnce * kAtOnce;  // of two outputs
  const std::uint64_t policy = first_out_policy();
  Output output(warp * gridDim.x + blockIdx.x, gridDim.x * kWarps, args.hidden / 2);
  Output next = output;
  int next_stage = 0, next_pair = next.row * chosen, column = lane, slot = 0;
  const uint4* weights = nullptr;  // the rows of `next` of an expert; null: the expert isn't here
  const auto find_rows = [&] {
    if (next.row >= args.rows || next_stage >= all_stages) return;
    const int expert = choices.expert[next_pair];
    const std::int64_t row = std::int64_t{expert} * args.hidden + 2 * next.column;
    weights = expert >= 0 ? reinterpret_cast<const uint4*>(args.weights) + row * vectors : nullptr;
  };
  find_rows();
  const auto load_next = [&] {
    if (next.row < args.rows) {
      if (next_stage < all_stages) {
        const bool inside = column < vectors && weights != nullptr;
        const uint4* from = inside ? weights + column : reinterpret_cast<const uint4*>(args.weights);
        copy_16_async(shared_address(ring + slot * 64), from, inside ? 16 : 0, policy);
        copy_16_async(shared_address(ring + slot * 64 + 32), from + (inside ? vectors : 0), inside ? 16 : 0, policy);
      }
      column += 32;
      ++next_stage;
      if (next_stage == stages) {
        next_stage = 0;
        next.advance();
        next_pair = next.row * chosen;
        column = lane;
        find_rows();
      } else if (column >= end) {
        ++next_pair;
        column = lane;
        find_rows();
      }
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
    commit_copies();
  };
#pragma unroll 1
  for (int i = 0; i < kStages; ++i) load_next();
  wait_for_previous();
  let_next_start();
  if (args.keeps_inputs) {
    const int all = args.rows * chosen * vectors;
#pragma unroll 4
    for (int i = threadIdx.x; i < all; i += kThreads) kept[i] = reinterpret_cast<const uint4*>(args.x)[i];
    __syncthreads();
  }
  int read = 0;
  for (; output.row < args.rows; output.advance()) {
    auto* y = reinterpret_cast<std::uint32_t*>(args.y + std::int64_t{output.row} * args.hidden) + output.column;
    const std::uint32_t before = args.adds && lane == 0 ? *y : 0;
    float sums[2][kAtOnce] = {};
    int pair = output.row * chosen, at = lane;
    for (int stage = 0; stage < stages; stage += kAtOnce) {
      uint4 input[kAtOnce];
      float weight[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        input[k] = make_uint4(0, 0, 0, 0);
        weight[k] = 0.0f;
        if (stage + k >= all_stages) continue;
        if (at < vectors && choices.expert[pair] >= 0) {
          weight[k] = choices.weight[pair];
          input[k] = ((args.keeps_inputs ? kept : reinterpret_cast<const uint4*>(args.x)) + pair * vectors)[at];
        }
        at += 32;
        if (at >= end) {
          at = lane;
          ++pair;
        }
      }
      wait_copies<kStages - kAtOnce>();
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (stage + k >= all_stages) continue;
        sums[0][k] += weight[k] * dot(ring[(read + k) * 64], input[k]);
        sums[1][k] += weight[k] * dot(ring[(read + k) * 64 + 32], input[k]);
      }
      read = read + kAtOnce == kStages ? 0 : read + kAtOnce;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) load_next();
    }
    float low = sums[0][0] + sums[0][1], high = sums[1][0] + sums[1][1];
    if (args.bias != nullptr && lane < chosen) {
      const int expert = choices.expert[output.row * chosen + lane];
      if (expert >= 0) {
        const float* bias = args.bias + std::int64_t{expert} * args.hidden + 2 * output.column;
        low += choices.weight[output.row * chosen + lane] * bias[0];
        high += choices.weight[output.row * chosen + lane] * bias[1];
      }
    }
    low = warp_sum(low);
    high = warp_sum(high);
    if (lane == 0) {
      float factor = 1.0f;
      if (args.rule.shared == RouterRule::Shared::gated)
        factor = sigmoid(args.logits[std::int64_t{output.row + 1} * args.logit_stride - 1]);
      *y = pack2<bf16>(__uint_as_float(before << 16) * factor + low,
                       __uint_as_float(before & 0xffff0000u) * factor + high);
    }
  }
}

void launch(void (*kernel)(FewArgs), FewArgs args, std::int64_t outputs, std::int64_t input_bytes,
            cudaStream_t stream) {
  args.keeps_inputs = args.norm != nullptr || input_bytes <= kMostInputBytes;
  const std::size_t bytes = kRingBytes + static_cast<std::size_t>(args.keeps_inputs ? input_bytes : 0);
  MINISGL_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(outputs, num_processors()));
  launch_kernel(kernel, dim3(blocks), kThreads, bytes, stream, args);
}

}  // namespace

void few_expert_rows(const ExpertsArgs& args, cudaStream_t stream) {
  MINISGL_CHECK(args.rows <= kMostFewRows && args.rule.num_chosen <= kMaxChosenExperts);
  const ExpertWeights& weights = args.weights;
  FewArgs few{.weights = static_cast<const bf16*>(weights.gate_up),
              .bias = weights.gate_up_bias,
              .logits = args.scratch.logits,
              .rule = args.rule,
              .activation = args.activation,
              .x = static_cast<const bf16*>(args.x),
              .norm = args.norm,
              .eps = args.eps,
              .y = static_cast<bf16*>(args.scratch.gated),
              .rows = args.rows,
              .hidden = weights.hidden,
              .width = weights.width,
              .num_experts = weights.num_experts,
              .first_expert = weights.first_expert,
              .all_experts = weights.all_experts,
              .logit_stride = args.logit_stride(),
              .adds = false,
              .keeps_inputs = false,
              .use = args.use};
  launch(few_gated_kernel, few, std::int64_t{args.pairs()} * weights.width,
         std::int64_t{2} * args.rows * weights.hidden, stream);
  few.weights = static_cast<const bf16*>(weights.down);
  few.bias = weights.down_bias;
  few.x = static_cast<const bf16*>(args.scratch.gated);
  few.norm = nullptr;
  few.y = static_cast<bf16*>(args.y);
  few.adds = args.adds || args.rule.shared != RouterRule::Shared::none;
  launch(few_down_kernel, few, std::int64_t{args.rows} * weights.hidden / 2,
         std::int64_t{2} * args.pairs() * weights.width, stream);
}

}  // namespace minisgl::cuda
