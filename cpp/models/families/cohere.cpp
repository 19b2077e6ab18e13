// Cohere's Command R: attention and MLP side by side behind one layer norm, neighbouring dimensions rotate, logits are
// scaled. Command R7B and A (cohere2) have a sliding window on three of four layers, and rope on those alone.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {
namespace {

ModelSpec read_command(const ConfigReader& config, double theta) {
  ModelSpec spec = read_dense(config, {.max_position = 8192,
                                       .rope = {.theta = theta},
                                       .norm_eps = 1e-5,
                                       .norm_eps_key = "layer_norm_eps",
                                       .tied_embeddings = true});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.rope.interleaved = true;
  spec.centered_norms = true;
  spec.norms = {"input_layernorm", "", "", ""};
  spec.parallel_mlp = true;
  spec.logit_scale = config.number("logit_scale", 1e-6, 1e6, 0.0625);
  return spec;
}

}  // namespace

ModelSpec read_cohere(const ConfigReader& config) {
  if (config.boolean("use_qk_norm", false)) {
    config.fail("layer norms of queries and keys (use_qk_norm, Command R+) are not supported");
  }
  return read_command(config, 500000.0);
}

ModelSpec read_cohere2(const ConfigReader& config) {
  ModelSpec spec = read_command(config, 10000.0);
  spec.window = read_alternating_windows(config, spec.num_layers, 4);
  for (const std::int32_t window : spec.window) spec.rotates.push_back(window != 0 ? 1 : 0);
  return spec;
}

}  // namespace minisgl
