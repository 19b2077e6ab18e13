// Mistral: Llama without biases, every layer under one sliding window (or none: sliding_window null). Ministral may
// have it on some layers, Ministral 3 has none, and queries that grow with their position.
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_mistral(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 8, .max_position = 131072});
  spec.window.assign(spec.window.size(), read_window(config));
  return spec;
}

ModelSpec read_ministral(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 8, .max_position = 131072});
  spec.window = read_alternating_windows(config, spec.num_layers, spec.num_layers + 1);
  return spec;
}

ModelSpec read_ministral3(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 8, .head_dim = 128, .max_position = 262144, .norm_eps = 1e-5});
  spec.window.assign(spec.window.size(), read_window(config, 0));
  return spec;
}

}  // namespace minisgl
