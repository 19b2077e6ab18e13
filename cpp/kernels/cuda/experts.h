// Entry points of the kernels of mixtures of experts. All queue their work on `stream`; pointers are the device's,
// activations bf16.
//
// Rows are counted twice: a token of the step, and a token's pair with one of its chosen experts. Pairs are numbered
// token after token, in the order of the scores; sorted by expert, a pair stands at its slot.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gemm/weights.h"
#include "kernels/activation.h"
#include "kernels/router.h"

namespace minisgl::cuda {

// Gate and up of an expert lie together, eight rows of the one and eight of the other in turn; the last groups may be
// of fewer than eight outputs, and are filled with zeros.
constexpr int kGateGroup = 8;
constexpr std::int64_t padded_outputs(std::int64_t intermediate_size) {
  return (intermediate_size + kGateGroup - 1) / kGateGroup * kGateGroup;
}

// The weights of a layer's experts. `width` is padded_outputs(intermediate_size).
struct ExpertWeights {
  const void* gate_up;        // bf16 [num_experts, 2 * width, hidden]
  const void* down;           // bf16 [num_experts, hidden, width]
  const float* gate_up_bias;  // [num_experts, 2 * width], in the order of the rows; or null
  const float* down_bias;     // [num_experts, hidden] or null
  int num_experts, first_expert, all_experts;
  int hidden, width;
};

// What the kernels keep between them, for some number of rows.
struct ExpertScratch {
  float* logits;          // [rows, all_experts (+ 1)]
  float* pair_weights;    // [pairs]
  std::int32_t* choices;  // [pairs]: experts of this device from 0, or -1
  std::int32_t* slots;    // [pairs]: -1 for experts of other devices
  std::int32_t* offsets;  // [num_experts + 1]: slots of an expert's pairs
  std::int32_t* counts;   // [blocks of rows, num_experts]: pairs
  void* x;                // [pairs, hidden], by slot
  void* gated;            // [pairs, width], by slot (by pair where rows are few)
  void* outputs;          // [pairs, hidden], by slot
};
// Bytes for so many rows; `at` null: nothing is laid out.
std::size_t lay_out_experts(std::byte* at, const ExpertWeights& sizes, const RouterRule& rule, std::int64_t rows,
                            ExpertScratch& scratch);

struct ExpertsArgs {
  ExpertWeights weights;
  ExpertScratch scratch;
  RouterRule rule;
  Activation activation;
  const void* x;      // [rows, hidden]
  const float* norm;  // [hidden]: weights of an RMS norm of x, to be done; or null
  float eps;
  void* y;  // [rows, hidden]
  int rows;
  bool adds = false;  // y is added to without a shared expert, too
  // The RMS norm of y: [hidden] its weights, or null. sum_expert_rows() writes it to `normed`.
  const float* next_norm = nullptr;
  float next_eps = 0.0f;
  void* normed = nullptr;        // [rows, hidden]
  std::uint64_t* use = nullptr;  // [2]: counts of Ops::ExpertUse
  int logit_stride() const { return weights.all_experts + (rule.shared == RouterRule::Shared::gated ? 1 : 0); }
  int pairs() const { return rows * rule.num_chosen; }
};

// All of it for few rows, from scratch.logits: two kernels that read the weights of each pair. The kernel before the
// first is done when the second begins to read the logits.
constexpr std::int64_t kMostFewRows = 4;
void few_expert_rows(const ExpertsArgs& args, cudaStream_t stream);

// Choices and slots from scratch.logits, and x of the pairs by slot.
void order_expert_rows(const ExpertsArgs& args, cudaStream_t stream);
// y of outputs.
void sum_expert_rows(const ExpertsArgs& args, cudaStream_t stream);

// The products between the two, on compute capability 9.0.
struct ExpertTiling {
  int tile_rows = 0;  // of x: 16, 32, 64, 128, 256; 0: by the number of rows
  int wide = -1;      // 128 weight rows of a block in place of 64; -1: by the tile's rows
};
bool has_expert_tiles();
void multiply_expert_tiles(const ExpertsArgs& args, const ExpertTiling& tiling, cudaStream_t stream);

}  // namespace minisgl::cuda
