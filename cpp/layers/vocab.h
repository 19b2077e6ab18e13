// The two ends of a language model: token ids to vectors, vectors to logits. Both are cut over the vocabulary when
// there are several ranks, and may share one matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/thread_pool.h"
#include "gemm/gemm.h"
#include "gemm/packed_matrix.h"

namespace minisgl {

class VocabParallelEmbedding {
 public:
  explicit VocabParallelEmbedding(std::shared_ptr<const PackedMatrix> table);  // [vocab_size, hidden_size]
  // out [tokens.size(), hidden_size]; tokens are in [0, vocab_size).
  void forward(std::span<const std::int32_t> tokens, float* out, ThreadPool& pool) const;

 private:
  std::shared_ptr<const PackedMatrix> table_;
};

class VocabParallelHead {
 public:
  explicit VocabParallelHead(std::shared_ptr<const PackedMatrix> weight);  // [vocab_size, hidden_size]
  // logits [num_rows, vocab_size] of x [num_rows, hidden_size].
  void forward(const float* x, std::int64_t num_rows, float* logits, GemmWorkspace& workspace, ThreadPool& pool) const;

 private:
  std::shared_ptr<const PackedMatrix> weight_;
};

}  // namespace minisgl
