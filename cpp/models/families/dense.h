// What the families of dense decoders share in their configurations.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config_reader.h"
#include "models/model_spec.h"
#include "models/rope_config.h"

namespace minisgl {

// A family's defaults for keys that a configuration may leave out.
struct DenseDefaults {
  std::int64_t num_kv_heads = 0;  // 0: as many as query heads
  std::int64_t head_dim = 0;      // 0: hidden_size over query heads
  std::int64_t max_position = 0;
  RopeDefaults rope = {};
  double norm_eps = 1e-6;
  const char* norm_eps_key = "rms_norm_eps";
  bool tied_embeddings = false;
  Activation activation = Activation::silu;  // the only one that the family has
  bool may_have_experts = false;
};

// Sizes, rope, stop tokens, tied embeddings; full attention in every layer, no biases, no norms on heads.
ModelSpec read_dense(const ConfigReader& config, const DenseDefaults& defaults);

// sliding_window: tokens that a position sees, itself included; 0 for null. A missing key is 4096, the default of most
// configuration classes in transformers.
std::int32_t read_window(const ConfigReader& config, std::int32_t fallback = 4096);

// [num_layers] windows after use_sliding_window and layer_types or max_window_layers (Qwen).
std::vector<std::int32_t> read_window_by_layer(const ConfigReader& config, std::int64_t num_layers);

// [num_layers] windows of sliding_window tokens, in the layers that layer_types names; without it in all but each
// `interval`-th (sliding_window_pattern, where the configuration has it).
std::vector<std::int32_t> read_alternating_windows(const ConfigReader& config, std::int64_t num_layers,
                                                   std::int64_t interval);

}  // namespace minisgl
