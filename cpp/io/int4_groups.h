// Matrices that int4 checkpoints hold as several tensors (AWQ, GPTQ, and compressed-tensors' "pack-quantized"), as one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "io/safetensors_file.h"
#include "io/weight_source.h"

namespace minisgl {

// What a configuration says of weights of 4 bits.
struct Int4Scheme {
  enum class Layout : std::uint8_t {
    awq,     // qweight, qzeros, scales: packed along the outputs
    gptq,    // the same packed along the inputs; g_idx: the group of each input
    packed,  // weight_packed, weight_scale, weight_zero_point, weight_shape
  };
  Layout layout = Layout::awq;
  std::int64_t group_size = 128;  // inputs; 0: all of them
  std::int64_t zero_offset = 0;   // what is added to a stored zero
};

// Nothing where there is no such key as "quantization_config" or its weights aren't of 4 bits in groups. Throws
// InputError that begins with `path` where they are of a kind that isn't read.
std::optional<Int4Scheme> int4_scheme(const nlohmann::json& config, const std::string& path);

using FindEntry = std::function<const SafetensorsEntry*(const std::string& name)>;  // null: there is none

// `source` with a tensor X.weight for each matrix that it has in parts: int4_64 or int4_128 where the groups have so
// many neighbouring inputs (or a multiple), q4_0 or q4_1 where they have 32, bf16 where a group's inputs don't lie side
// by side.
std::unique_ptr<WeightSource> with_int4_groups(std::unique_ptr<WeightSource> source, const Int4Scheme& scheme,
                                               FindEntry find);

}  // namespace minisgl
