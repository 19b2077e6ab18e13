// gpt-oss: experts with biases and a clamped SwiGLU, an attention sink for each head, a sliding window on each second
// layer.
#include <utility>

#include "core/error.h"
#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_gpt_oss(const ConfigReader& config) {
  const RopeDefaults rope{.theta = 150000.0};
  ModelSpec spec = read_dense(config, {.num_kv_heads = 8,
                                       .head_dim = 64,
                                       .max_position = 131072,
                                       .rope = rope,
                                       .norm_eps = 1e-5,
                                       .may_have_experts = true});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", true);
  spec.window = read_alternating_windows(config, spec.num_layers, 2);
  spec.sinks = true;
  spec.activation = Activation::clamped_silu;
  for (const auto& [key, value] : {std::pair{"swiglu_alpha", kClampedSiluSlope}, {"swiglu_limit", kClampedSiluLimit}}) {
    if (static_cast<float>(config.number(key, 0.0, 1e6, value)) != value) config.fail_value(key, concat(value));
  }
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = true;
  spec.experts.biased = true;
  spec.experts.alternating = true;
  spec.experts.names.router = "mlp.router";
  return spec;
}

}  // namespace minisgl
