// GLM-4: neighbouring dimensions of half of each head rotate, gate and up are fused; GLM-4-0414 has norms before and
// after attention and MLP. GLM-4.5 has halves rotate, and experts in all layers but the first.
#include <algorithm>

#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_glm(const ConfigReader& config) {
  const RopeDefaults rope{.rotated_part = 0.5, .rotates_part = true};
  ModelSpec spec = read_dense(
      config, {.num_kv_heads = 2, .head_dim = 128, .max_position = 131072, .rope = rope, .norm_eps = 1.5625e-7});
  spec.rope.interleaved = true;
  spec.qkv_bias = config.boolean("attention_bias", true);
  spec.fused_gate_up = true;
  return spec;
}

ModelSpec read_glm4(const ConfigReader& config) {
  ModelSpec spec = read_glm(config);
  spec.norms = {"input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"};
  return spec;
}

ModelSpec read_glm4_moe(const ConfigReader& config) {
  const RopeDefaults rope{.rotated_part = 0.5, .rotates_part = true};
  ModelSpec spec = read_dense(
      config, {.num_kv_heads = 8, .max_position = 131072, .rope = rope, .norm_eps = 1e-5, .may_have_experts = true});
  spec.qkv_bias = config.boolean("attention_bias", false);
  if (config.boolean("use_qk_norm", false)) spec.qk_norm = ModelSpec::QueryKeyNorm::each_head;
  if (config.integer("n_group", 1, kMaxExperts, 1) != 1)
    config.fail("a choice among groups of experts (n_group) is not supported");
  spec.experts = read_experts(config, spec);
  spec.experts.scores = RouterRule::Scores::sigmoid;
  spec.experts.normalized = config.boolean("norm_topk_prob", true);
  spec.experts.scale = config.number("routed_scaling_factor", 0.0, 1e6, 1.0);
  spec.experts.choice_biased = true;
  spec.experts.shared_intermediate_size =
      config.integer("n_shared_experts", 0, kMaxExperts, 1) * spec.experts.intermediate_size;
  spec.experts.names.shared = "mlp.shared_experts";
  spec.experts.in_layer.assign(static_cast<std::size_t>(spec.num_layers), 1);
  const std::int64_t dense = config.integer("first_k_dense_replace", 0, spec.num_layers, 1);
  std::fill_n(spec.experts.in_layer.begin(), dense, std::uint8_t{0});
  return spec;
}

}  // namespace minisgl
