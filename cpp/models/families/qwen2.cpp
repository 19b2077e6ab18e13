// Qwen2 and Qwen2.5: biases on queries, keys and values; a sliding window on some layers.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_qwen2(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 32, .max_position = 32768});
  spec.qkv_bias = true;
  spec.window = read_window_by_layer(config, spec.num_layers);
  return spec;
}

}  // namespace minisgl
