// Gemma: norms' weights are stored less 1, embeddings are scaled, and the MLP has GELU. Gemma 2 and 3 have norms before
// and after attention and MLP, and a sliding window on most layers; Gemma 2 caps scores and logits, Gemma 3 norms
// heads.
#include <cmath>

#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {
namespace {

ModelSpec read_any_gemma(const ConfigReader& config, const DenseDefaults& defaults) {
  ModelSpec spec = read_dense(config, defaults);
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.norm_offset = 1.0;
  spec.embedding_scale = std::sqrt(static_cast<double>(spec.hidden_size));
  return spec;
}

// What Gemma 2 and 3 share.
void read_later_gemma(const ConfigReader& config, std::int64_t interval, ModelSpec& spec) {
  constexpr double most = 1e6;
  spec.norms = {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                "post_feedforward_layernorm"};
  spec.window = read_alternating_windows(config, spec.num_layers, interval);
  spec.score_scale = 1.0 / std::sqrt(config.number("query_pre_attn_scalar", 1.0, most, 256.0));
  spec.score_cap = config.number("attn_logit_softcapping", 0.0, most, 0.0);
  spec.logit_cap = config.number("final_logit_softcapping", 0.0, most, 0.0);
}

}  // namespace

ModelSpec read_gemma(const ConfigReader& config) {
  return read_any_gemma(config, {.num_kv_heads = 16,
                                 .head_dim = 256,
                                 .max_position = 8192,
                                 .tied_embeddings = true,
                                 .activation = Activation::gelu_tanh});
}

ModelSpec read_gemma2(const ConfigReader& config) {
  ModelSpec spec = read_any_gemma(config, {.num_kv_heads = 4,
                                           .head_dim = 256,
                                           .max_position = 8192,
                                           .tied_embeddings = true,
                                           .activation = Activation::gelu_tanh});
  read_later_gemma(config, 2, spec);
  return spec;
}

ModelSpec read_gemma3(const ConfigReader& config) {
  ModelSpec spec = read_any_gemma(config, {.num_kv_heads = 4,
                                           .head_dim = 256,
                                           .max_position = 131072,
                                           .rope = {.theta = 1000000.0, .by_layer = true},
                                           .tied_embeddings = true,
                                           .activation = Activation::gelu_tanh});
  read_later_gemma(config, 6, spec);
  spec.qk_norm = ModelSpec::QueryKeyNorm::each_head;
  const double local_theta = config.number("rope_local_base_freq", 1.0, 1e15, 10000.0);
  spec.sliding_rope = parse_sliding_rope(config, spec.head_dim, spec.max_position, {.theta = local_theta});
  return spec;
}

}  // namespace minisgl
