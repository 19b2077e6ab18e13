// Mixtral: Mistral with experts in place of MLPs, whose weights add up to 1.
#include "models/families/dense.h"
#include "models/families/experts.h"
#include "models/families/families.h"

namespace minisgl {

ModelSpec read_mixtral(const ConfigReader& config) {
  const RopeDefaults rope{.theta = 1e6};
  ModelSpec spec = read_dense(
      config, {.num_kv_heads = 8, .max_position = 131072, .rope = rope, .norm_eps = 1e-5, .may_have_experts = true});
  spec.window.assign(spec.window.size(), read_window(config, 0));
  spec.experts = read_experts(config, spec);
  spec.experts.normalized = true;
  spec.experts.names = {
      .router = "block_sparse_moe.gate", .experts = "block_sparse_moe.experts", .gate = "w1", .up = "w3", .down = "w2"};
  return spec;
}

}  // namespace minisgl
