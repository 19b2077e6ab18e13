// The two ends of a language model: token ids to vectors, vectors to logits. Both are cut over the vocabulary when
// there are several ranks, and may share one matrix.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace minisgl {

class VocabParallelEmbedding {
 public:
  // [vocab_size, hidden_size]
  explicit VocabParallelEmbedding(std::shared_ptr<const Matrix> table) : table_(std::move(table)) {}
  // out [num_rows, hidden_size]: the vectors of the step's tokens, which are in [0, vocab_size).
  void forward(Ops& device, Tensor out) const { device.embed(*table_, out); }

 private:
  std::shared_ptr<const Matrix> table_;
};

class VocabParallelHead {
 public:
  // [vocab_size, hidden_size]
  explicit VocabParallelHead(std::unique_ptr<const Linear> weights) : weights_(std::move(weights)) {}
  // logits [num_rows, vocab_size] f32 of the norm of x [num_rows, hidden_size]; `normed` has room for it.
  void forward(Ops& device, Tensor x, const Norm& norm, Tensor normed, Tensor logits) const {
    device.norm_linear(*weights_, x, norm, normed, logits);
  }

 private:
  std::unique_ptr<const Linear> weights_;
};

}  // namespace minisgl
