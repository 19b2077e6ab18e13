// Sizes of a rank's part, and the numbers of ranks that there can be.
#include "models/model_shard.h"

#include <string>
#include <string_view>

#include "core/error.h"
#include "layers/sharding.h"

namespace minisgl {
namespace {

constexpr int kMostRanks = 64;  // the most that a message lists

bool has_dense_layer(const ModelSpec& spec) {
  if (spec.experts.num_experts == 0) return true;
  for (std::int64_t layer = 0; layer < spec.num_layers; ++layer) {
    if (!spec.has_experts(layer)) return true;
  }
  return false;
}

// Why `spec` can't be split over so many ranks; empty where it can.
std::string obstacle(const ModelSpec& spec, const ColumnBlocks& blocks, ExpertCut expert_cut, int num_ranks) {
  if (num_ranks == 1) return {};
  const auto width = [&](std::int64_t features, std::string_view what, std::int64_t block) -> std::string {
    if (!can_split(shard_rule(Role::down).split, features, num_ranks)) {
      return concat("the model's ", features, " intermediate features", what);
    }
    if (features / num_ranks % block == 0) return {};
    return concat("the model's ", features, " intermediate features", what, ", which the file stores in blocks of ",
                  block, ",");
  };
  if (!can_split(shard_rule(Role::query).split, spec.num_heads, num_ranks)) {
    return concat("the model's ", spec.num_heads, " query heads");
  }
  if (!can_split(shard_rule(Role::key).split, spec.num_kv_heads, num_ranks)) {
    return concat("the model's ", spec.num_kv_heads, " KV heads");
  }
  if (spec.num_heads * spec.head_dim / num_ranks % blocks.attention_output != 0) {
    return concat("the model's ", spec.num_heads * spec.head_dim,
                  " attention outputs, which the file stores in blocks of ", blocks.attention_output, ",");
  }
  if (has_dense_layer(spec)) {
    if (std::string fault = width(spec.intermediate_size, "", blocks.down); !fault.empty()) return fault;
  }
  const ExpertSpec& experts = spec.experts;
  if (experts.shared_intermediate_size > 0) {
    std::string fault = width(experts.shared_intermediate_size, " of the shared expert", blocks.down);
    if (!fault.empty()) return fault;
  }
  if (experts.num_experts == 0) return {};
  if (expert_cut == ExpertCut::width) return width(experts.intermediate_size, " of an expert", blocks.expert_down);
  return experts.num_experts % num_ranks == 0 ? "" : concat("the model's ", experts.num_experts, " experts");
}

}  // namespace

ModelShard shard_of(const ModelSpec& spec, int num_ranks, const ColumnBlocks& blocks, ExpertCut expert_cut) {
  MINISGL_CHECK(num_ranks > 0, num_ranks, " ranks");
  if (const std::string fault = obstacle(spec, blocks, expert_cut, num_ranks); !fault.empty()) {
    std::string possible = "1";
    for (int size = 2; size <= kMostRanks; ++size) {
      if (obstacle(spec, blocks, expert_cut, size).empty()) possible += concat(", ", size);
    }
    throw InputError(
        concat(fault, " can't be split over ", num_ranks, " ranks; numbers of ranks that work: ", possible));
  }
  const auto count = [&](Role role, std::int64_t units) {
    return units == 0 ? 0 : rank_slice(shard_rule(role).split, units, 0, num_ranks).count;
  };
  const ExpertSpec& experts = spec.experts;
  const bool whole = expert_cut == ExpertCut::whole;
  return {.num_heads = count(Role::query, spec.num_heads),
          .num_kv_heads = count(Role::key, spec.num_kv_heads),
          .intermediate_size = count(Role::down, has_dense_layer(spec) ? spec.intermediate_size : 0),
          .shared_intermediate_size = count(Role::down, experts.shared_intermediate_size),
          .num_experts = whole ? experts.num_experts / num_ranks : experts.num_experts,
          .expert_intermediate_size = whole ? experts.intermediate_size : count(Role::down, experts.intermediate_size),
          .vocab_size = count(Role::vocabulary, spec.vocab_size),
          .expert_cut = expert_cut};
}

ExpertsShape experts_shape(const ModelSpec& spec, const ModelShard& shard, int rank) {
  return {.num_experts = shard.num_experts,
          .first_expert = shard.expert_cut == ExpertCut::whole ? rank * shard.num_experts : 0,
          .all_experts = spec.experts.num_experts,
          .hidden_size = spec.hidden_size,
          .intermediate_size = shard.expert_intermediate_size,
          .biased = spec.experts.biased};
}

RouterRule router_rule(const ModelSpec& spec, const float* choice_bias) {
  const ExpertSpec& experts = spec.experts;
  RouterRule rule{.num_chosen = static_cast<int>(experts.num_chosen),
                  .scores = experts.scores,
                  .normalized = experts.normalized,
                  .scale = static_cast<float>(experts.scale),
                  .choice_bias = choice_bias};
  if (experts.shared_intermediate_size > 0) {
    rule.shared = experts.shared_gated ? RouterRule::Shared::gated : RouterRule::Shared::added;
  }
  return rule;
}

}  // namespace minisgl
