// What one of several tensor-parallel ranks holds of a decoder.
#pragma once

#include <cstdint>

#include "gemm/weights.h"
#include "kernels/router.h"
#include "models/model_spec.h"

namespace minisgl {

// Columns that a file stores together, in the matrices that ranks cut by columns: a cut lies between blocks.
struct ColumnBlocks {
  std::int64_t attention_output = 1;
  std::int64_t down = 1;  // of layers without experts, and of shared experts
  std::int64_t expert_down = 1;
};

// How experts are dealt out over ranks: each rank has its part of the intermediate features of all of them, or all
// features of its part of them.
enum class ExpertCut : std::uint8_t { width, whole };

// The same on every rank.
struct ModelShard {
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t intermediate_size;         // of layers without experts
  std::int64_t shared_intermediate_size;  // of shared experts
  std::int64_t num_experts;               // rank r has those from r * num_experts on with ExpertCut::whole, else all
  std::int64_t expert_intermediate_size;
  std::int64_t vocab_size;  // rows of embedding and head, with padding (layers/sharding.h)
  ExpertCut expert_cut;
};

// The experts of a layer that a rank holds, and how its router chooses among those of all ranks.
ExpertsShape experts_shape(const ModelSpec& spec, const ModelShard& shard, int rank);
RouterRule router_rule(const ModelSpec& spec, const float* choice_bias);

// Throws InputError that says which number of the model can't be split over so many ranks, and over how many it can.
ModelShard shard_of(const ModelSpec& spec, int num_ranks, const ColumnBlocks& blocks = {},
                    ExpertCut expert_cut = ExpertCut::width);

}  // namespace minisgl
