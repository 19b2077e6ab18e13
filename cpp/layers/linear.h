// Linear layers named by how they are cut over tensor-parallel ranks. A layer holds its rank's part of the matrices
// and knows nothing of ranks: the loader cuts the weights (models/weight_loader.h), the decoder sums over ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "gemm/gemm.h"
#include "gemm/packed_matrix.h"

namespace minisgl {

// One matrix and its bias.
struct Projection {
  PackedMatrix weight;      // [out_features, in_features]
  std::vector<float> bias;  // [out_features] or empty
};

// Several projections of the same input, written side by side.
class MergedLinear {
 public:
  explicit MergedLinear(std::vector<Projection> outputs);
  // y [num_rows, out_features()] = x [num_rows, in_features] through every projection, in order.
  void forward(const float* x, std::int64_t num_rows, float* y, GemmWorkspace& workspace, ThreadPool& pool) const;
  std::int64_t out_features() const { return out_features_; }
  std::int64_t nbytes() const;  // of matrices and biases
  const std::vector<Projection>& outputs() const { return outputs_; }

 private:
  std::vector<Projection> outputs_;
  std::vector<GemmPart> parts_;  // point into outputs_, whose elements stay where they are when the layer moves
  std::int64_t out_features_ = 0;
};

// Each output cut by rows: a rank computes its share of every output's features.
class LinearColParallelMerged : public MergedLinear {
 public:
  using MergedLinear::MergedLinear;
};

// Queries, keys and values, cut by heads; key and value heads are replicated where there are fewer than ranks.
class LinearQKVMerged : public MergedLinear {
 public:
  LinearQKVMerged(Projection query, Projection key, Projection value);
};

// The input cut: a rank multiplies its columns, and what it writes is its share of a sum over ranks.
class LinearRowParallel : public MergedLinear {
 public:
  explicit LinearRowParallel(Projection output);
};

}  // namespace minisgl
