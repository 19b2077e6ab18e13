// OLMo 2 and 3: norms behind attention and MLP in place of those before, and over all query and all key heads. OLMo 3
// has a sliding window on three of four layers, whose rope isn't stretched. OLMoE has norms before attention and
// experts, and those over all heads.
#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_olmo2(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.max_position = 2048, .norm_eps = 1e-5});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.norms = {"", "post_attention_layernorm", "", "post_feedforward_layernorm"};
  spec.qk_norm = ModelSpec::QueryKeyNorm::all_heads;
  return spec;
}

ModelSpec read_olmo3(const ConfigReader& config) {
  const RopeDefaults rope{.theta = 500000.0, .by_layer = true};
  ModelSpec spec = read_dense(config, {.max_position = 2048, .rope = rope, .norm_eps = 1e-5});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.norms = {"", "post_attention_layernorm", "", "post_feedforward_layernorm"};
  spec.qk_norm = ModelSpec::QueryKeyNorm::all_heads;
  spec.window = read_alternating_windows(config, spec.num_layers, 4);
  spec.sliding_rope = parse_sliding_rope(config, spec.head_dim, spec.max_position, {.theta = spec.rope.theta});
  return spec;
}

ModelSpec read_olmoe(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.max_position = 4096, .norm_eps = 1e-5, .may_have_experts = true});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.qk_norm = ModelSpec::QueryKeyNorm::all_heads;
  if (config.has("clip_qkv")) config.fail("clip_qkv is not supported");
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = config.boolean("norm_topk_prob", false);
  return spec;
}

}  // namespace minisgl
