// Linear layers named by how they are cut over tensor-parallel ranks. A layer holds its rank's part of the matrices
// and knows nothing of ranks: the loader cuts the weights (models/weight_loader.h), the decoder sums over ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops.h"

namespace minisgl {

// Several projections of the same input, written side by side.
class MergedLinear {
 public:
  explicit MergedLinear(std::unique_ptr<const Linear> weights) : weights_(std::move(weights)) {}
  std::int64_t nbytes() const { return weights_->nbytes(); }  // of matrices and biases

 protected:
  std::unique_ptr<const Linear> weights_;
};

// Each output cut by rows: a rank computes its share of every output's features.
class LinearColParallelMerged : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // y [num_rows, out_features / 2]: of the norm of x the first output through SiLU, times the second. `z` has room for
  // both, `normed` for x.
  void forward_gated(Ops& device, Tensor x, const Norm& norm, Tensor normed, Tensor z, Tensor y) const {
    device.norm_gated_linear(*weights_, x, norm, normed, z, y);
  }
};

// Queries, keys and values, cut by heads; key and value heads are replicated where there are fewer than ranks.
class LinearQKVMerged : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // y [num_rows, out_features] = the norm of x through every projection, in order. `normed` has room for x.
  void forward(Ops& device, Tensor x, const Norm& norm, Tensor normed, Tensor y) const {
    device.norm_linear(*weights_, x, norm, normed, y);
  }
};

// The input cut: a rank multiplies its columns, and what it writes is its share of a sum over ranks.
class LinearRowParallel : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // residual [num_rows, out_features] += x [num_rows, in_features] through the projection. `delta` has room for the
  // sum.
  void forward(Ops& device, Tensor x, Tensor delta, Tensor residual) const {
    device.add_linear(*weights_, x, delta, residual);
  }
};

}  // namespace minisgl
