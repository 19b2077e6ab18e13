// Embedding look-up and the logits head.
#include "layers/vocab.h"

#include <algorithm>
#include <array>
#include <utility>

namespace minisgl {

VocabParallelEmbedding::VocabParallelEmbedding(std::shared_ptr<const PackedMatrix> table) : table_(std::move(table)) {}

void VocabParallelEmbedding::forward(std::span<const std::int32_t> tokens, float* out, ThreadPool& pool) const {
  const std::int64_t num_rows = std::ssize(tokens);
  constexpr std::int64_t rows_per_task = 16;  // a decode step's few rows aren't worth waking threads
  pool.parallel_for((num_rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
    for (std::int64_t row = task * rows_per_task; row < end; ++row) {
      table_->dequantize_row(tokens[static_cast<std::size_t>(row)], out + row * table_->cols());
    }
  });
}

VocabParallelHead::VocabParallelHead(std::shared_ptr<const PackedMatrix> weight) : weight_(std::move(weight)) {}

void VocabParallelHead::forward(const float* x, std::int64_t num_rows, float* logits, GemmWorkspace& workspace,
                                ThreadPool& pool) const {
  const std::array<GemmPart, 1> parts{{{weight_.get(), nullptr, 0}}};
  gemm({.parts = parts, .x = x, .num_rows = num_rows, .y = logits, .y_stride = weight_->rows()}, workspace, pool);
}

}  // namespace minisgl
