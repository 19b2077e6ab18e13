// What a configuration's quantization_config says of the weights, and the scales that lie beside them.
#pragma once

#include <cstdint>
#include <string>

#include "gemm/scaled_bytes.h"
#include "io/weight_source.h"
#include "layers/sharding.h"
#include "models/config_reader.h"

namespace minisgl {

// Throws InputError for a method that isn't supported, and names those that are.
void check_quantization(const ConfigReader& config);

// The tensor of scales of a weight in e4m3 ("model.layers.0.mlp.up_proj.weight"). Throws InputError where there is
// none.
std::string scales_name(const WeightSource& source, const std::string& weight);

// The scales of the weight [rows, cols]: one number, one for each row, or one for each of the blocks that the
// configuration names.
ScaleGrid read_scales(const WeightSource& source, const std::string& weight, std::int64_t rows, std::int64_t cols);

// Those of a rank's rows or columns. Throws InputError where the cut falls into a block.
ScaleGrid take_scales(const ScaleGrid& whole, std::int64_t rows, std::int64_t cols, Cut cut, const Slice& slice,
                      const std::string& weight);

// Scales that nothing is made of here: activations are scaled token by token, and the cache by its own rule.
bool is_static_scale(const std::string& name);

}  // namespace minisgl
