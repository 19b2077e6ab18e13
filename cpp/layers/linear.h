// Linear layers named by how they are cut over tensor-parallel ranks. A layer holds its rank's part of the matrices
// and knows nothing of ranks: the table in sharding.h says what its part is, and the decoder sums over ranks.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops.h"

namespace minisgl {

// Several projections of the same input, written side by side.
class MergedLinear {
 public:
  MergedLinear() = default;  // nothing, which no forward is called of
  explicit MergedLinear(std::unique_ptr<const Linear> weights) : weights_(std::move(weights)) {}
  // y [num_rows, out_features] = x [num_rows, in_features] through every projection, in order.
  void forward(Ops& ops, const LinearInput& x, Tensor y) const { ops.linear(*weights_, x, y); }
  bool has_weights() const { return weights_ != nullptr; }
  std::int64_t in_features() const { return weights_->in_features(); }
  std::int64_t out_features() const { return weights_->out_features(); }
  std::int64_t nbytes() const { return weights_ ? weights_->nbytes() : 0; }  // matrices and biases
  const Linear& weights() const { return *weights_; }

 protected:
  std::unique_ptr<const Linear> weights_;
};

// Each output cut by rows: a rank computes its share of every output's features.
class LinearColParallelMerged : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // y [num_rows, out_features / 2]: the first output's activation times the second. `scratch` has room for both.
  LinearInput forward_gated(Ops& ops, const LinearInput& x, Tensor scratch, Tensor y, Activation activation) const {
    return ops.gated_linear(*weights_, x, scratch, y, activation);
  }
};

// Queries, keys and values, cut by heads; key and value heads are replicated where there are fewer than ranks.
class LinearQKVMerged : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // Queries of x to qkv [num_rows, shape.row_size()], keys and values to the cache, all as attention reads them.
  void forward_heads(Ops& ops, const LinearInput& x, Tensor qkv, const HeadShape& shape, const HeadTransform& transform,
                     const ops::KvLayer& cache) const {
    ops.linear_heads(*weights_, x, qkv, shape, transform, cache);
  }
};

// The input cut: a rank multiplies its columns, and what it writes is its share of a sum over ranks.
class LinearRowParallel : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
  // residual [num_rows, out_features] += the sum over ranks of x [num_rows, in_features] through the projection.
  // Returns the residual's norm. `delta` and `normed` have room for the product and for the norm.
  LinearInput forward_add_norm(Ops& ops, const LinearInput& x, Tensor delta, Tensor residual, const Norm& norm,
                               Tensor normed) const {
    return ops.linear_add_norm(*weights_, x, delta, residual, norm, normed);
  }
};

}  // namespace minisgl
