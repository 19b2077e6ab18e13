// Qwen's mixtures of experts: the dense models with experts in place of the MLPs of some or all layers; Qwen 2 has a
// shared expert beside them, which a gate scales.
#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_qwen2_moe(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 16, .max_position = 32768, .may_have_experts = true});
  spec.qkv_bias = config.boolean("qkv_bias", true);
  spec.window = read_window_by_layer(config, spec.num_layers);
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = config.boolean("norm_topk_prob", false);
  spec.experts.in_layer = read_sparse_layers(config, spec.num_layers);
  spec.experts.shared_intermediate_size = config.integer("shared_expert_intermediate_size", 1, 1 << 22);
  spec.experts.shared_gated = true;
  return spec;
}

ModelSpec read_qwen3_moe(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 4, .max_position = 32768, .may_have_experts = true});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.qk_norm = ModelSpec::QueryKeyNorm::each_head;
  if (config.boolean("use_sliding_window", false)) spec.window.assign(spec.window.size(), read_window(config));
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = config.boolean("norm_topk_prob", false);
  spec.experts.in_layer = read_sparse_layers(config, spec.num_layers);
  return spec;
}

}  // namespace minisgl
