// Rotary embedding settings out of a configuration, in the old spelling and the new.
#pragma once

#include <cstdint>

#include "models/config_reader.h"
#include "models/model_spec.h"

namespace minisgl {

// What a family's configuration may leave out or ask for.
struct RopeDefaults {
  double theta = 10000.0;
  double rotated_part = 1.0;  // of each head
  bool rotates_part = false;  // whether configurations may name another part
  bool by_layer = false;      // whether layers with a sliding window may have rope parameters of their own
};

// Reads rope_parameters (transformers 5), or rope_scaling and rope_theta (before). Throws InputError for types other
// than default, linear, llama3, yarn and longrope.
RopeSpec parse_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position,
                    const RopeDefaults& defaults);
// The rope of layers with a sliding window, where it differs: rope_parameters' sliding_attention, or without that the
// plain one by defaults.theta.
RopeSpec parse_sliding_rope(const ConfigReader& config, std::int64_t head_dim, std::int64_t max_position,
                            const RopeDefaults& defaults);

}  // namespace minisgl
