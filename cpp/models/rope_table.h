// Cosines and sines of rotary position embeddings, computed for the positions that are used.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/hardware.h"
#include "models/model_spec.h"

namespace minisgl {

// [rotary_dim / 2] angles per position, as transformers' modeling_rope_utils defines them for each type, where no
// sequence has more than `context` positions.
std::vector<float> rope_inverse_frequencies(const RopeSpec& spec, std::int64_t context);

// What cos and sin are multiplied by: 1 but for yarn and longrope.
double rope_attention_factor(const RopeSpec& spec);

class RopeTable {
 public:
  // No step uses more than `max_positions`. `for_queries`: scaled as the spec scales queries.
  RopeTable(const RopeSpec& spec, std::int64_t max_positions, Hardware& device, bool for_queries = false);
  // Sequences have at most so many positions, which longrope's angles depend on; `max_positions` until it is told.
  // Called before positions are reserved.
  void set_context(std::int64_t num_positions);
  // Makes the table cover positions [0, num_positions). Grows by doubling up to max_positions, so an unused
  // long context costs neither time nor memory.
  void reserve(std::int64_t num_positions);
  // The most bytes that the table takes while it covers so many positions, however it grew.
  std::int64_t bytes_for(std::int64_t num_positions) const;
  // [reserved positions, rotary_dim]: the first half of a row is cos, the second sin, attention factor included.
  // In the device's memory.
  const float* data() const { return table_.as<float>(); }

 private:
  float scale_at(std::int64_t position) const;

  RopeSpec spec_;
  bool for_queries_;
  std::vector<float> inverse_frequencies_;
  float attention_factor_;
  std::int64_t max_positions_;
  std::int64_t num_positions_ = 0;
  Hardware& device_;
  DeviceBuffer table_;
};

}  // namespace minisgl
