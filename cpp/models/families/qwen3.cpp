// Qwen3: RMS norms on each query and key head in place of biases; a sliding window on some layers.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_qwen3(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 32, .head_dim = 128, .max_position = 32768});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.qk_norm = ModelSpec::QueryKeyNorm::each_head;
  spec.window = read_window_by_layer(config, spec.num_layers);
  return spec;
}

}  // namespace minisgl
