// Sizes of a rank's part, and the numbers of ranks that there can be.
#include "models/model_shard.h"

#include <string>

#include "core/error.h"
#include "layers/sharding.h"

namespace minisgl {
namespace {

constexpr int kMostRanks = 64;  // the most that a message lists

// Why `spec` can't be split over so many ranks; empty where it can.
std::string obstacle(const ModelSpec& spec, const ColumnBlocks& blocks, int num_ranks) {
  if (num_ranks == 1) return {};
  if (!can_split(shard_rule(Role::query).split, spec.num_heads, num_ranks)) {
    return concat("the model's ", spec.num_heads, " query heads");
  }
  if (!can_split(shard_rule(Role::key).split, spec.num_kv_heads, num_ranks)) {
    return concat("the model's ", spec.num_kv_heads, " KV heads");
  }
  if (!can_split(shard_rule(Role::down).split, spec.intermediate_size, num_ranks)) {
    return concat("the model's ", spec.intermediate_size, " intermediate features");
  }
  if (spec.num_heads * spec.head_dim / num_ranks % blocks.attention_output != 0) {
    return concat("the model's ", spec.num_heads * spec.head_dim,
                  " attention outputs, which the file stores in blocks of ", blocks.attention_output, ",");
  }
  if (spec.intermediate_size / num_ranks % blocks.down != 0) {
    return concat("the model's ", spec.intermediate_size, " intermediate features, which the file stores in blocks of ",
                  blocks.down, ",");
  }
  return {};
}

}  // namespace

ModelShard shard_of(const ModelSpec& spec, int num_ranks, const ColumnBlocks& blocks) {
  MINISGL_CHECK(num_ranks > 0, num_ranks, " ranks");
  if (const std::string fault = obstacle(spec, blocks, num_ranks); !fault.empty()) {
    std::string possible = "1";
    for (int size = 2; size <= kMostRanks; ++size) {
      if (obstacle(spec, blocks, size).empty()) possible += concat(", ", size);
    }
    throw InputError(
        concat(fault, " can't be split over ", num_ranks, " ranks; numbers of ranks that work: ", possible));
  }
  const auto count = [&](Role role, std::int64_t units) {
    return rank_slice(shard_rule(role).split, units, 0, num_ranks).count;
  };
  return {.num_heads = count(Role::query, spec.num_heads),
          .num_kv_heads = count(Role::key, spec.num_kv_heads),
          .intermediate_size = count(Role::down, spec.intermediate_size),
          .vocab_size = count(Role::vocabulary, spec.vocab_size)};
}

}  // namespace minisgl
