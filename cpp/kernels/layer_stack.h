// All layers of a decoder as one operation, for steps of few rows on devices that have it.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/weights.h"
#include "kernels/linear_input.h"
#include "kernels/ops.h"

namespace minisgl {

// A layer of Llama's form: norm, heads, attention over the whole cache, output added to the residual; norm, gate and
// up, SiLU, down added to the residual.
struct StackedLayer {
  const Linear *qkv, *attention_output, *gate_up, *down;
  const float *input_norm, *mlp_norm;  // [hidden] RMS norms
  const float *query_norm, *key_norm;  // [head_dim] of each head, or null
  ops::KvLayer cache;
};

// What is stacked lives longer than the stack.
struct StackedLayers {
  std::vector<StackedLayer> layers;
  std::int64_t hidden, intermediate;
  HeadShape shape;
  float norm_eps;  // of all norms
  int rotary_dim;
  float score_scale;
};

class LayerStack {
 public:
  virtual ~LayerStack() = default;
  virtual std::int64_t most_rows() const = 0;
  // Whether run() takes the step at hand, of so many rows.
  virtual bool takes(std::int64_t num_rows) const = 0;
  // The step's rows of the residual through all layers. Returns the norm of it, which `normed` has room for.
  // rope_table: as in HeadTransform.
  virtual LinearInput run(OutputTensor residual, const float* rope_table, const Norm& norm, OutputTensor normed) = 0;
};

}  // namespace minisgl
