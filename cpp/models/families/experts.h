// What the families of mixtures of experts share in their configurations.
#pragma once

#include <cstdint>

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

// Numbers and sizes of experts, num_chosen by num_experts_per_tok: an expert's size is moe_intermediate_size where the
// configuration has it, else intermediate_size. All layers have experts, and no expert is shared.
ExpertSpec read_experts(const ConfigReader& config, const ModelSpec& spec);

// [num_layers] by decoder_sparse_step and mlp_only_layers (Qwen).
std::vector<std::uint8_t> read_sparse_layers(const ConfigReader& config, std::int64_t num_layers);

}  // namespace minisgl
