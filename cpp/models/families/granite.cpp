// Granite: Llama with multipliers of embeddings, scores, logits, and of what a layer adds to the residual; and the same
// with experts in place of MLPs, beside which there may be a shared one.
#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

namespace {

ModelSpec read_any_granite(const ConfigReader& config, bool has_experts) {
  ModelSpec spec = read_dense(config, {.max_position = 2048, .may_have_experts = has_experts});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.mlp_bias = config.boolean("mlp_bias", false);
  constexpr double least = 1e-6, most = 1e6;
  spec.score_scale = config.number("attention_multiplier", least, most, 1.0);
  spec.logit_scale = 1.0 / config.number("logits_scaling", least, most, 1.0);
  // Only norms read the residual, and they don't depend on its scale, but for their epsilon. So it is kept divided by
  // the multiplier of what is added to it.
  const double added = config.number("residual_multiplier", least, most, 1.0);
  spec.embedding_scale = config.number("embedding_multiplier", least, most, 1.0) / added;
  spec.norm_eps /= added * added;
  return spec;
}

}  // namespace

ModelSpec read_granite(const ConfigReader& config) {
  return read_any_granite(config, false);
}

ModelSpec read_granite_moe(const ConfigReader& config) {
  ModelSpec spec = read_any_granite(config, true);
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = true;
  spec.experts.names = {.router = "block_sparse_moe.router.layer",
                        .experts = "block_sparse_moe",
                        .down = "output_linear",
                        .gate_up = "input_linear",
                        .shared = "shared_mlp",
                        .shared_gate_up = "input_linear",
                        .shared_down = "output_linear"};
  spec.experts.shared_intermediate_size = config.integer("shared_intermediate_size", 0, 1 << 22, 0);
  return spec;
}

}  // namespace minisgl
