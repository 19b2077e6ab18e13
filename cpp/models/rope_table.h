// Cosines and sines of rotary position embeddings, computed for the positions that are used.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/hardware.h"
#include "models/model_spec.h"

namespace minisgl {

// [rotary_dim / 2] angles per position, as transformers' modeling_rope_utils defines them for each type.
std::vector<float> rope_inverse_frequencies(const RopeSpec& spec);

// What cos and sin are multiplied by: 1 but for yarn.
double rope_attention_factor(const RopeSpec& spec);

class RopeTable {
 public:
  RopeTable(const RopeSpec& spec, Hardware& device);
  // Makes the table cover positions [0, num_positions). Grows by doubling, so a long context that nobody uses costs
  // neither time nor memory.
  void reserve(std::int64_t num_positions);
  // [reserved positions, rotary_dim]: the first half of a row is cos, the second sin, attention factor included.
  // In the device's memory.
  const float* data() const { return table_.as<float>(); }

 private:
  std::vector<float> inverse_frequencies_;
  float attention_factor_;
  std::int64_t num_positions_ = 0;
  Hardware& device_;
  DeviceBuffer table_;
};

}  // namespace minisgl
