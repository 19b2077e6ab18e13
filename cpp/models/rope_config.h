// Rotary embedding settings out of a configuration, in the old spelling and the new.
#pragma once

#include <cstdint>

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

// Reads rope_parameters (transformers 5), or rope_scaling and rope_theta (before). Throws InputError for types other
// than default, linear, llama3 and yarn.
RopeSpec parse_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position);

}  // namespace minisgl
