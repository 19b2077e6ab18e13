// Granite: Llama with multipliers of embeddings, scores, logits, and of what a layer adds to the residual.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_granite(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.max_position = 2048});
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

}  // namespace minisgl
