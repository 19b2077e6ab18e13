// Mistral: Llama without biases, every layer under one sliding window (or none: sliding_window null).
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_mistral(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.num_kv_heads = 8, .max_position = 131072});
  spec.window.assign(spec.window.size(), read_window(config));
  return spec;
}

}  // namespace minisgl
