// The two ends of a language model: token ids to vectors, vectors to logits. Both are cut over the vocabulary when
// there are several ranks, and may share one matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "kernels/ops.h"

namespace minisgl {

class VocabParallelEmbedding {
 public:
  // [part of the vocabulary, hidden_size], of the tokens from first_token on
  VocabParallelEmbedding(std::shared_ptr<const Matrix> table, std::int64_t first_token)
      : table_(std::move(table)), first_token_(first_token) {}
  // out [num_rows, hidden_size]: the rank's share of a sum over ranks. One of them has a token's vector times `scale`,
  // the others zeros.
  void forward(Ops& ops, Tensor out, float scale) const { ops.embed(*table_, first_token_, out, scale); }

 private:
  std::shared_ptr<const Matrix> table_;
  std::int64_t first_token_;
};

class VocabParallelHead {
 public:
  // [part of the vocabulary, hidden_size]
  explicit VocabParallelHead(std::unique_ptr<const Linear> weights) : weights_(std::move(weights)) {}
  // logits [num_rows, part of the vocabulary] f32 of x [num_rows, hidden_size].
  void forward(Ops& ops, const LinearInput& x, Tensor logits) const { ops.linear(*weights_, x, logits); }

 private:
  std::unique_ptr<const Linear> weights_;
};

}  // namespace minisgl
