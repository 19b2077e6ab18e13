// What the families of mixtures of experts share in their configurations.
#include "models/families/experts.h"

#include <algorithm>
#include <vector>

namespace minisgl {

ExpertSpec read_experts(const ConfigReader& config, const ModelSpec& spec) {
  ExpertSpec experts;
  const char* count = config.has("num_local_experts")  ? "num_local_experts"
                      : config.has("n_routed_experts") ? "n_routed_experts"
                                                       : "num_experts";
  experts.num_experts = config.integer(count, 1, kMaxExperts);
  experts.num_chosen =
      config.integer("num_experts_per_tok", 1, std::min<std::int64_t>(experts.num_experts, kMaxChosenExperts));
  experts.intermediate_size = config.integer("moe_intermediate_size", 1, 1 << 22, spec.intermediate_size);
  return experts;
}

std::vector<std::uint8_t> read_sparse_layers(const ConfigReader& config, std::int64_t num_layers) {
  std::vector<std::uint8_t> sparse(static_cast<std::size_t>(num_layers), 0);
  const std::int64_t step = config.integer("decoder_sparse_step", 1, 1 << 20, 1);
  for (std::int64_t i = 0; i < num_layers; ++i) sparse[static_cast<std::size_t>(i)] = (i + 1) % step == 0;
  const nlohmann::json* dense = config.find("mlp_only_layers");
  if (dense == nullptr) return sparse;
  if (!dense->is_array()) config.fail_value("mlp_only_layers", "a list of layers");
  for (const nlohmann::json& layer : *dense) {
    if (!layer.is_number_integer()) config.fail_value("mlp_only_layers", "a list of layers");
    const auto index = layer.get<std::int64_t>();
    if (index >= 0 && index < num_layers) sparse[static_cast<std::size_t>(index)] = 0;
  }
  return sparse;
}

}  // namespace minisgl
