// A device as one rank of several that compute a model together. All ranks make the same calls in the same order, with
// the same steps.
#pragma once

#include "core/tensor.h"

namespace minisgl {

class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual int rank() const = 0;       // among num_ranks() devices
  virtual int num_ranks() const = 0;  // 1 without a communicator

  // x = the sum of the ranks' x: the same bits on every rank.
  virtual void sum_over_ranks(OutputTensor x) = 0;
  // y = the ranks' columns side by side, as far as y has columns. part [rows, n], scratch [num_ranks * rows, n],
  // y [rows, up to num_ranks * n]; all f32.
  virtual void gather_columns(Tensor part, OutputTensor scratch, OutputTensor y) = 0;
};

}  // namespace minisgl
