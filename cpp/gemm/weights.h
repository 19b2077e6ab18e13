// Weights as a device keeps them: what a WeightMaker makes at load and multiplies by. The layout is the device's own
// business.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace minisgl {

// One matrix of a file, in the layout that the device's kernels read. Read only once it is made.
class Matrix {
 public:
  Matrix() = default;
  Matrix(Matrix&&) = default;
  Matrix& operator=(Matrix&&) = default;
  virtual ~Matrix() = default;
  virtual DType dtype() const = 0;         // the format of its elements now
  virtual std::int64_t rows() const = 0;   // output features
  virtual std::int64_t cols() const = 0;   // input features
  virtual std::size_t nbytes() const = 0;  // what one full read of the matrix moves
};

// One matrix and its bias.
struct Projection {
  std::shared_ptr<const Matrix> weight;  // [out_features, in_features]
  std::vector<float> bias;               // [out_features] or empty
};

// Several projections of one input, whose outputs lie side by side.
class Linear {
 public:
  virtual ~Linear() = default;
  virtual std::int64_t in_features() const = 0;
  virtual std::int64_t out_features() const = 0;
  virtual std::int64_t nbytes() const = 0;  // matrices and biases
};

// The experts of a layer that a device holds: an MLP each, of the same sizes. Those of all ranks are numbered; the
// device's are the numbers from first_expert() on.
struct ExpertsShape {
  std::int64_t num_experts = 0;   // that the device holds
  std::int64_t first_expert = 0;  // the number of its first
  std::int64_t all_experts = 0;   // of all ranks: the router's logits
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;  // the rank's part
  bool biased = false;                 // whether gate, up and down have biases
};

class Experts {
 public:
  virtual ~Experts() = default;
  virtual const ExpertsShape& shape() const = 0;
  virtual std::int64_t nbytes() const = 0;  // matrices and biases of all
  std::int64_t nbytes_each() const { return shape().num_experts > 0 ? nbytes() / shape().num_experts : 0; }
};

// Where a device keeps what matrices became, for later starts, and of what. A file is of one model's files, as they
// were, one rank's part and one layout.
struct KeepRequest {
  std::string folder;
  std::string of;               // lines of text that differ where matrices may
  std::int64_t num_bytes = 0;   // of all matrices, about
  std::int64_t most_bytes = 0;  // of all files in the folder; those that were used last stay
};

}  // namespace minisgl
