// GLM-4: neighbouring dimensions of half of each head rotate, gate and up are fused; GLM-4-0414 has norms before and
// after attention and MLP.
#include "models/families/dense.h"
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

}  // namespace minisgl
