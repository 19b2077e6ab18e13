// Attention with the kernels of a given instruction set: what cpu_ops::paged_attention calls, and tests call for each
// set.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/ops.h"

namespace minisgl {

void paged_attention(const CpuKernels& kernels, ThreadPool& pool, cpu_ops::QkvView qkv,
                     std::span<const ops::SequenceRows> sequences, ops::KvLayer cache, ScoreRule scores,
                     std::int32_t window, float* out);

}  // namespace minisgl
