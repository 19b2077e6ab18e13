// A layer's experts on the CPU: each a few packed matrices, multiplied by the rows that chose it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/thread_pool.h"
#include "gemm/gemm.h"
#include "kernels/cpu/low_rank.h"
#include "kernels/ops.h"
#include "kernels/weight_maker.h"

namespace minisgl::cpu_ops {

// Their matrices lie in `file`; null: in memory.
std::unique_ptr<ExpertsMaker> make_experts(const ExpertsShape& shape, ThreadPool& pool, MemoryFile* file);

// What the router makes of a row's logits [all_experts]: the chosen, best first, and their weights. Both [num_chosen].
void choose_experts(const float* logits, std::int64_t all_experts, const RouterRule& rule, std::int32_t* chosen,
                    float* weights);

std::int64_t experts_scratch_bytes(const ExpertsShape& shape, const RouterRule& rule, std::int64_t num_rows);

// Ops::experts behind the router: x [num_rows, hidden_size], logits [num_rows, all_experts, and one more with
// Shared::gated], y [num_rows, hidden_size]. What one row takes is read at memory bandwidth by all threads: the chosen
// experts' matrices are cut like those of one layer.
struct ExpertRows {
  const float* x;
  const float* logits;
  std::int64_t num_rows;
  float* y;
  std::span<const AdapterRows> adapters = {};  // rows that adapters change
  AlignedBuffer* low_rank = nullptr;           // scratch, where there are any
};
void run_experts(const ExpertLayer& layer, const ExpertRows& rows, std::span<std::byte> scratch,
                 GemmWorkspace& workspace, ThreadPool& pool);

}  // namespace minisgl::cpu_ops
