// SmolLM3: Llama without rope on each fourth layer.
#include "core/error.h"
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {
namespace {

// no_rope_layers: 1 for a layer with rope, 0 for one without.
std::vector<std::uint8_t> read_rotating_layers(const ConfigReader& config, std::int64_t num_layers) {
  std::vector<std::uint8_t> rotates(static_cast<std::size_t>(num_layers), 1);
  const nlohmann::json* flags = config.find("no_rope_layers");
  if (flags == nullptr) {
    const std::int64_t interval = config.integer("no_rope_layer_interval", 1, 4096, 4);
    for (std::int64_t i = interval; i <= num_layers; i += interval) rotates[static_cast<std::size_t>(i - 1)] = 0;
    return rotates;
  }
  for (std::size_t i = 0; i < rotates.size(); ++i) {
    if (!flags->is_array() || i >= flags->size() || !((*flags)[i] == 0 || (*flags)[i] == 1)) {
      config.fail_value("no_rope_layers", concat("a list of 0 and 1 for each of ", num_layers, " layers"));
    }
    rotates[i] = (*flags)[i] == 1 ? 1 : 0;
  }
  return rotates;
}

}  // namespace

ModelSpec read_smollm3(const ConfigReader& config) {
  ModelSpec spec = read_dense(
      config, {.num_kv_heads = 4, .max_position = 32768, .rope = {.theta = 2000000.0}, .tied_embeddings = true});
  spec.qkv_bias = spec.output_bias = config.boolean("attention_bias", false);
  spec.mlp_bias = config.boolean("mlp_bias", false);
  spec.rotates = read_rotating_layers(config, spec.num_layers);
  if (config.boolean("use_sliding_window", false) && config.has("sliding_window")) {
    spec.window = read_window_by_layer(config, spec.num_layers);
  }
  return spec;
}

}  // namespace minisgl
