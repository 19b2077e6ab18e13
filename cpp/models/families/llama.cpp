// Llama: the plain form. Its biases are optional.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_llama(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.max_position = 2048});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.mlp_bias = config.boolean("mlp_bias", false);
  return spec;
}

}  // namespace minisgl
