// Phi-3 and Phi-4: Llama with fused projections, a rope that may turn a part of each head and stretch it (longrope).
#include "models/families/dense.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_phi3(const ConfigReader& config) {
  ModelSpec spec = read_dense(config, {.max_position = 4096, .rope = {.rotates_part = true}});
  spec.fused_qkv = spec.fused_gate_up = true;
  spec.window.assign(spec.window.size(), read_window(config, 0));
  return spec;
}

}  // namespace minisgl
