// What the families of dense decoders share in their configurations.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

// A family's defaults for keys that a configuration may leave out; 0: derived from the number of query heads.
struct DenseDefaults {
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position = 0;
};

// Sizes, rope, stop tokens, tied embeddings; full attention in every layer, no biases, no norms on heads.
ModelSpec read_dense(const ConfigReader& config, const DenseDefaults& defaults);

// sliding_window: tokens that a position sees, itself included; 0 for null. A missing key is 4096, the default of the
// configuration classes in transformers.
std::int32_t read_window(const ConfigReader& config);

// [num_layers] windows after use_sliding_window and layer_types or max_window_layers (Qwen).
std::vector<std::int32_t> read_window_by_layer(const ConfigReader& config, std::int64_t num_layers);

}  // namespace minisgl
